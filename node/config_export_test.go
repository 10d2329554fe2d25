package node

import (
	"reflect"
	"strings"

	"creto.dev"
)

// LoadBelow is Load with the default paths below root.
func LoadBelow(root string, env func(string) (string, bool)) (Config, []string, error) {
	return loadConfig(root, "", env)
}

// ParseConfig is Load of a document that is in memory.
func ParseConfig(file string, doc []byte, env func(string) (string, bool)) (Config, error) {
	d := &configDecoder{config: Default(), env: env, places: map[string]configPlace{}}
	d.decode(file, doc)
	return d.finish()
}

// ConfigKeys returns every key of a configuration.
func ConfigKeys() []string { return configKeys("", configRoot()) }

func configRoot() reflect.Value { return reflect.ValueOf(Default()) }

func configKeys(prefix string, v reflect.Value) []string {
	var keys []string
	for _, key := range keysOf(v) {
		f, _ := fieldOf(v, key)
		path := strings.TrimPrefix(prefix+"."+key, ".")
		switch {
		case f.Kind() == reflect.Struct && f.Type() != reflect.TypeFor[creto.Secret]():
			keys = append(keys, configKeys(path, f)...)
		case f.Kind() == reflect.Slice && f.Type().Elem().Kind() == reflect.Struct:
			keys = append(keys, configKeys(path, reflect.Zero(f.Type().Elem()))...)
		default:
			keys = append(keys, path)
		}
	}
	return keys
}
