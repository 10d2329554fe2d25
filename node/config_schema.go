package node

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"creto.dev"
	"github.com/pelletier/go-toml/v2/unstable"
)

// unbuilt finds the section of a part that does not exist yet: its keys are
// refused with that reason instead of as unknown.
func unbuilt(path string) (section, part string, ok bool) {
	for _, s := range []struct{ section, part string }{
		{"email", "email"}, {"integrations.email", "email"},
		{"webhook", "webhook"}, {"integrations.webhook", "webhook"},
		{"messaging", "messaging"}, {"integrations.messaging", "messaging"},
		{"metering", "metering"},
		{"billing", "billing"}, {"integrations.billing", "billing"},
		{"memory", "memory"}, {"storage", "storage"},
		{"server.tls", "TLS"},
		{"slack", "slack"}, {"stripe", "stripe"},
	} {
		if path == s.section || strings.HasPrefix(path, s.section+".") {
			return s.section, s.part, true
		}
	}
	return "", "", false
}

// fieldOf returns the field of struct v whose key is name.
func fieldOf(v reflect.Value, name string) (reflect.Value, bool) {
	for field, value := range v.Fields() {
		if field.Anonymous {
			if f, ok := fieldOf(value, name); ok {
				return f, true
			}
			continue
		}
		if name != "" && field.Tag.Get("toml") == name {
			return value, true
		}
	}
	return reflect.Value{}, false
}

// keysOf returns the keys of struct v.
func keysOf(v reflect.Value) []string {
	var keys []string
	for field, value := range v.Fields() {
		if field.Anonymous {
			keys = append(keys, keysOf(value)...)
			continue
		}
		if key := field.Tag.Get("toml"); key != "" {
			keys = append(keys, key)
		}
	}
	return keys
}

// differing returns the keys below prefix in which two structs of one type
// differ.
func differing(prefix string, a, b reflect.Value) []string {
	var keys []string
	for _, key := range keysOf(a) {
		x, _ := fieldOf(a, key)
		y, _ := fieldOf(b, key)
		if !reflect.DeepEqual(x.Interface(), y.Interface()) {
			keys = append(keys, prefix+"."+key)
		}
	}
	return keys
}

// sectionEnabled reports whether the section around key is switched on: it has no
// switch, or that is true.
func sectionEnabled(config reflect.Value, key string) bool {
	v := config
	for name := range strings.SplitSeq(key, ".") {
		if v.Kind() != reflect.Struct {
			return true
		}
		if on, ok := fieldOf(v, "enabled"); ok && on.Kind() == reflect.Bool && !on.Bool() {
			return false
		}
		f, ok := fieldOf(v, name)
		if !ok {
			return true // an element of a list; none has a switch
		}
		v = f
	}
	return true
}

// suggest returns a hint at the key of v that name may have meant.
func suggest(v reflect.Value, name string) string {
	best, distance := "", 3
	for _, key := range keysOf(v) {
		if n := edits(name, key); n < distance {
			best, distance = key, n
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %s?", best)
}

// edits is the Levenshtein distance of short strings.
func edits(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// describe says in words what v takes.
func describe(v reflect.Value) string {
	switch v.Interface().(type) {
	case Duration:
		return `a duration such as "1m30s"`
	case creto.Secret:
		return "a string"
	}
	switch v.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "a whole number"
	case reflect.Float64:
		return "a number"
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Struct {
			return "a list of tables"
		}
		return "a list of strings"
	case reflect.Struct, reflect.Map:
		return "a table"
	}
	return "a string"
}

// kindName says in words what stands in the file.
func kindName(k unstable.Kind) string {
	switch k {
	case unstable.String:
		return "a string"
	case unstable.Integer:
		return "a whole number"
	case unstable.Float:
		return "a number"
	case unstable.Bool:
		return "true or false"
	case unstable.Array:
		return "a list"
	case unstable.InlineTable, unstable.Table, unstable.ArrayTable:
		return "a table"
	}
	if slices.Contains([]unstable.Kind{unstable.DateTime, unstable.LocalDate, unstable.LocalDateTime, unstable.LocalTime}, k) {
		return "a date or time"
	}
	return "something else"
}
