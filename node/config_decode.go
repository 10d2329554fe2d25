package node

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"creto.dev"
	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// configDecoder reads TOML files into a Config. go-toml's own decoder stops at
// the first value of a wrong type and knows no variables; this one walks
// go-toml's syntax tree instead, so that every problem is found, with its place.
type configDecoder struct {
	config Config
	env    func(string) (string, bool)

	problems []configProblem
	places   map[string]configPlace // by key
	unset    []unsetVariable

	// literalSecret reports that some file holds a secret itself.
	literalSecret bool

	// Of the file being read:
	file    string
	parser  unstable.Parser
	arrays  map[string]bool // arrays of tables that it began
	refused map[string]bool // sections that were refused once already
}

// unsetVariable is a variable that env does not know. It is a problem only in a
// section that is enabled, which is known at the end.
type unsetVariable struct{ key, name string }

// configTable is where the keys below a [table] go. value is invalid below a
// table that is not known.
type configTable struct {
	path  string
	value reflect.Value
}

// decode reads one file over what was read before.
func (d *configDecoder) decode(file string, doc []byte) {
	d.file, d.arrays, d.refused = file, map[string]bool{}, map[string]bool{}
	// The syntax tree alone would let keys be defined twice.
	var whole map[string]any
	if err := toml.Unmarshal(doc, &whole); err != nil {
		d.syntaxProblem(doc, err)
		return
	}
	d.parser.Reset(doc)
	root := configTable{value: reflect.ValueOf(&d.config).Elem()}
	table := root
	for d.parser.NextExpression() {
		switch e := d.parser.Expression(); e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = d.enter(root, e)
		case unstable.KeyValue:
			d.set(table, e)
		default: // a comment
		}
	}
	if err := d.parser.Error(); err != nil {
		d.syntaxProblem(doc, err)
	}
}

// finish decides what could not be decided before, checks the whole, and returns
// it or all problems.
func (d *configDecoder) finish() (Config, error) {
	for _, u := range d.unset {
		if sectionEnabled(reflect.ValueOf(d.config), u.key) {
			d.problems = append(d.problems, configProblem{u.key, fmt.Sprintf("the variable %s is not set", u.name), d.places[u.key]})
		}
	}
	for i := range d.config.Inference.Providers {
		p := &d.config.Inference.Providers[i]
		if p.Kind == "" {
			p.Kind = ProviderOpenAI
		}
		if len(p.Models) == 0 {
			p.Models = []string{"*"}
		}
	}
	seen := map[string]bool{}
	for _, p := range d.problems {
		seen[p.key] = true
	}
	for _, p := range d.config.problems() {
		// What is wrong already may have left a zero value behind.
		if !seen[p.key] {
			p.place = d.nearest(p.key)
			d.problems = append(d.problems, p)
		}
	}
	if err := configError("node.Load", d.problems); err != nil {
		return Config{}, err
	}
	return d.config, nil
}

// nearest returns the place of key or, where the file does not have it, of the
// innermost table around it that the file has.
func (d *configDecoder) nearest(key string) configPlace {
	for {
		if place, ok := d.places[key]; ok {
			return place
		}
		end := strings.LastIndexAny(key, ".[")
		if end < 0 {
			return configPlace{}
		}
		key = key[:end]
	}
}

func (d *configDecoder) problem(key string, at configPlace, format string, args ...any) {
	d.problems = append(d.problems, configProblem{key, fmt.Sprintf(format, args...), at})
}

// syntaxProblem reports err with its line up to the value, which may be secret.
func (d *configDecoder) syntaxProblem(doc []byte, err error) {
	place := configPlace{file: d.file}
	text := "not valid TOML"
	if e, ok := errors.AsType[*toml.DecodeError](err); ok {
		place.line, place.col = e.Position()
		text = strings.TrimPrefix(e.Error(), "toml: ")
		lines := bytes.Split(doc, []byte("\n"))
		if place.line >= 1 && place.line <= len(lines) {
			line, _, hasValue := strings.Cut(string(lines[place.line-1]), "=")
			line = strings.ToValidUTF8(strings.TrimSpace(line), "?")
			if hasValue {
				line += " = …"
			}
			// A line without = may be the inside of a value.
			if hasValue || strings.HasPrefix(line, "[") {
				text += " (" + line + ")"
			}
		}
	}
	d.problems = append(d.problems, configProblem{"", text, place})
}

func (d *configDecoder) place(key *unstable.Node) configPlace {
	start := d.parser.Shape(key.Raw).Start
	return configPlace{d.file, start.Line, start.Column}
}

// enter finds the table that a [header] or [[header]] names.
func (d *configDecoder) enter(t configTable, header *unstable.Node) configTable {
	for it := header.Key(); it.Next(); {
		key := it.Node()
		t = d.child(t, key, header)
		if t.value.IsValid() && t.value.Kind() == reflect.Slice && t.value.Type().Elem().Kind() == reflect.Struct {
			last := header.Kind == unstable.ArrayTable && it.IsLast()
			if last && !d.arrays[t.path] {
				t.value.SetZero() // this file's list replaces an earlier file's
				d.arrays[t.path] = true
			}
			if last {
				t.value.Set(reflect.Append(t.value, reflect.Zero(t.value.Type().Elem())))
			}
			n := t.value.Len()
			if n == 0 {
				d.problem(t.path, d.place(key), "write [[%s]]", t.path)
				return configTable{path: t.path}
			}
			t = configTable{fmt.Sprintf("%s[%d]", t.path, n-1), t.value.Index(n - 1)}
			d.places[t.path] = d.place(key)
			continue
		}
		if !t.value.IsValid() {
			continue
		}
		isTable := t.value.Kind() == reflect.Struct || t.value.Kind() == reflect.Map
		if !isTable || header.Kind == unstable.ArrayTable && it.IsLast() {
			found := "a table"
			if header.Kind == unstable.ArrayTable {
				found = "a list of tables"
			}
			d.problem(t.path, d.place(key), "expected %s, found %s", describe(t.value), found)
			return configTable{path: t.path}
		}
	}
	return t
}

// child finds the key of t, and reports one that does not exist.
func (d *configDecoder) child(t configTable, key *unstable.Node, expression *unstable.Node) configTable {
	name := string(key.Data)
	path := name
	if t.path != "" {
		path = t.path + "." + name
	}
	child := configTable{path: path}
	if !t.value.IsValid() {
		if section, part, ok := unbuilt(path); ok && expression.Kind == unstable.KeyValue {
			d.refuse(section, part, d.place(key))
		}
		return child
	}
	switch t.value.Kind() {
	case reflect.Struct:
		if f, ok := fieldOf(t.value, name); ok {
			child.value = f
			d.places[path] = d.place(key)
			return child
		}
		if section, part, ok := unbuilt(path); ok {
			if expression.Kind == unstable.KeyValue {
				d.refuse(section, part, d.place(key))
			}
			return child
		}
		excerpt := string(d.parser.Raw(key.Raw)) + " = …"
		if expression.Kind != unstable.KeyValue {
			excerpt = "[" + excerpt[:len(excerpt)-len(" = …")] + "]"
		}
		d.problem(path, d.place(key), "unknown key (%s)%s", excerpt, suggest(t.value, name))
	case reflect.Map:
		child.value = reflect.New(t.value.Type().Elem()).Elem()
		d.places[path] = d.place(key)
	default:
		d.problem(path, d.place(key), "%s is %s and has no keys", t.path, describe(t.value))
	}
	return child
}

func (d *configDecoder) refuse(section, part string, at configPlace) {
	if !d.refused[section] {
		d.refused[section] = true
		d.problem(section, at, "%s is not built yet; remove %s", part, section)
	}
}

// set reads one key = value of t.
func (d *configDecoder) set(t configTable, kv *unstable.Node) {
	if !t.value.IsValid() {
		for it := kv.Key(); it.Next(); {
			t = d.child(t, it.Node(), kv)
		}
		return
	}
	for it := kv.Key(); it.Next(); {
		parent := t
		t = d.child(t, it.Node(), kv)
		if !t.value.IsValid() {
			return
		}
		if parent.value.Kind() == reflect.Map {
			if !it.IsLast() {
				d.problem(t.path, d.place(it.Node()), "quote the whole name, as in %q", "shop.test")
				return
			}
			d.assign(t.value, kv.Value(), t.path)
			if parent.value.IsNil() {
				parent.value.Set(reflect.MakeMap(parent.value.Type()))
			}
			parent.value.SetMapIndex(reflect.ValueOf(string(it.Node().Data)), t.value)
			return
		}
	}
	d.assign(t.value, kv.Value(), t.path)
}

// assign puts a value into v.
func (d *configDecoder) assign(v reflect.Value, node *unstable.Node, path string) {
	mismatch := func() {
		d.problem(path, d.places[path], "expected %s, found %s", describe(v), kindName(node.Kind))
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if node.Kind != unstable.String {
			mismatch()
			return
		}
		text, known, used := d.interpolate(string(node.Data), path)
		if !known {
			return
		}
		if _, secret := u.(*creto.Secret); secret && !used && text != "" {
			d.literalSecret = true
		}
		if err := u.UnmarshalText([]byte(text)); err != nil {
			d.problem(path, d.places[path], "expected %s", describe(v))
		}
		return
	}
	switch {
	case v.Kind() == reflect.String && node.Kind == unstable.String:
		text, _, _ := d.interpolate(string(node.Data), path)
		v.SetString(text)
	case v.Kind() == reflect.Bool && node.Kind == unstable.Bool:
		v.SetBool(string(node.Data) == "true")
	case v.Kind() == reflect.Int && node.Kind == unstable.Integer:
		// TOML's prefixes and underscores are those of base 0.
		n, err := strconv.ParseInt(string(node.Data), 0, strconv.IntSize)
		if err != nil {
			d.problem(path, d.places[path], "the number is too large")
			return
		}
		v.SetInt(n)
	case v.Kind() == reflect.Float64 && (node.Kind == unstable.Float || node.Kind == unstable.Integer):
		f, err := strconv.ParseFloat(strings.ReplaceAll(string(node.Data), "_", ""), 64)
		if err != nil {
			d.problem(path, d.places[path], "the number is out of range")
			return
		}
		v.SetFloat(f)
	case v.Kind() == reflect.Slice && node.Kind == unstable.Array:
		v.SetZero()
		for it := node.Children(); it.Next(); {
			if it.Node().Kind == unstable.Comment {
				continue
			}
			at := fmt.Sprintf("%s[%d]", path, v.Len())
			d.places[at] = d.places[path]
			v.Set(reflect.Append(v, reflect.Zero(v.Type().Elem())))
			d.assign(v.Index(v.Len()-1), it.Node(), at)
		}
	case (v.Kind() == reflect.Struct || v.Kind() == reflect.Map) && node.Kind == unstable.InlineTable:
		for it := node.Children(); it.Next(); {
			if it.Node().Kind == unstable.KeyValue {
				d.set(configTable{path, v}, it.Node())
			}
		}
	default:
		mismatch()
	}
}

// interpolate puts variables into text. known is false if one of them is not
// set; used says that there were any. What a variable holds is not looked at
// again.
func (d *configDecoder) interpolate(text, path string) (result string, known, used bool) {
	var b strings.Builder
	known = true
	for {
		before, after, found := strings.Cut(text, "${")
		if !found {
			b.WriteString(text)
			return b.String(), known, used
		}
		if escaped, ok := strings.CutSuffix(before, "$"); ok {
			b.WriteString(escaped + "${")
			text = after
			continue
		}
		b.WriteString(before)
		name, rest, closed := strings.Cut(after, "}")
		if !closed || !isVariable(name) {
			d.problem(path, d.places[path], "a variable is written ${NAME}; for a plain ${ write $${")
			return "", false, true
		}
		used = true
		value, ok := "", false
		if d.env != nil {
			value, ok = d.env(name)
		}
		if !ok {
			known = false
			d.unset = append(d.unset, unsetVariable{path, name})
		}
		b.WriteString(value)
		text = rest
	}
}

// isVariable reports whether a shell could set a variable of that name.
func isVariable(name string) bool {
	for i, c := range []byte(name) {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}
