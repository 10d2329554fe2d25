package node

import (
	"cmp"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"creto.dev/fault"
)

// ConfigPath is read when no file is named and it exists.
const ConfigPath = "/etc/creto/creto.toml"

// maxConfigBytes bounds a configuration file.
const maxConfigBytes = 1 << 20

// legacyConfigPaths are those of the specification's two documents, read below
// ConfigPath where they exist, the later over the earlier.
func legacyConfigPaths() []string {
	return []string{"/etc/creto/enablement.toml", "/etc/creto/enablement-integrations.toml"}
}

//go:embed config_defaults.toml
var configDefaults []byte

// Defaults returns a TOML file that explains every key and loads to exactly
// [Default].
func Defaults() []byte { return slices.Clone(configDefaults) }

// WriteDefaults writes [Defaults] to w.
func WriteDefaults(w io.Writer) error {
	_, err := w.Write(configDefaults)
	return fault.Wrap("node.WriteDefaults", err)
}

// Load reads the configuration file at path over [Default] and checks the
// result. With path "" it reads [ConfigPath] where that exists, and before it the
// two file names of the specification. ${NAME} in a string stands for what env
// says, such as os.LookupEnv; $${ is a plain ${. The warnings are for a person.
//
// Errors: InvalidArgument (Permanent), with a line for each problem, as
// file:line:column: key: what is wrong. It never shows a value that could be a
// secret.
func Load(path string, env func(string) (string, bool)) (Config, []string, error) {
	return loadConfig("", path, env)
}

// loadConfig is Load with the default paths below root.
func loadConfig(root, path string, env func(string) (string, bool)) (Config, []string, error) {
	const op fault.Op = "node.Load"
	d := &configDecoder{config: Default(), env: env, places: map[string]configPlace{}}
	var warnings []string
	paths := []string{path}
	if path == "" {
		paths = nil
		for _, p := range append(legacyConfigPaths(), ConfigPath) {
			p = filepath.Join(root, p)
			if _, err := os.Stat(p); errors.Is(err, fs.ErrNotExist) {
				continue
			}
			paths = append(paths, p)
			if filepath.Base(p) != filepath.Base(ConfigPath) {
				warnings = append(warnings, fmt.Sprintf("%s is an old name; move its content to %s", p, filepath.Join(root, ConfigPath)))
			}
		}
	}
	for _, p := range paths {
		doc, exposed, err := readConfig(p)
		if err != nil {
			return Config{}, warnings, fault.Wrap(op, err)
		}
		d.decode(p, doc)
		if exposed && d.literalSecret {
			warnings = append(warnings, p+" holds a secret and other users can read it; chmod 600, or use ${NAME}")
		}
	}
	config, err := d.finish()
	if err != nil {
		return Config{}, warnings, fault.Wrap(op, err)
	}
	return config, append(warnings, config.warnings()...), nil
}

// readConfig reads a file, and reports whether other users can read it too.
func readConfig(path string) (doc []byte, exposed bool, err error) {
	const op fault.Op = "node.Load"
	f, err := os.Open(path)
	if err != nil {
		why := "cannot be read"
		if errors.Is(err, fs.ErrNotExist) {
			why = "does not exist"
		}
		return nil, false, fault.WrapAs(op, fault.InvalidArgument, err, "the configuration file %s %s", path, why)
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		return nil, false, fault.New(op, fault.InvalidArgument, "the configuration file %s is a directory", path)
	}
	if err == nil {
		doc, err = io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	}
	switch {
	case err != nil:
		return nil, false, fault.WrapAs(op, fault.InvalidArgument, err, "the configuration file %s cannot be read", path)
	case len(doc) > maxConfigBytes:
		return nil, false, fault.New(op, fault.InvalidArgument, "the configuration file %s is larger than %d bytes", path, maxConfigBytes)
	}
	return doc, info.Mode().Perm()&0o077 != 0, nil
}

// configPlace is where a key stands.
type configPlace struct {
	file      string
	line, col int
}

// configProblem is one thing that is wrong.
type configProblem struct {
	key, text string
	place     configPlace // zero when not known
}

func (p configProblem) String() string {
	text := p.text
	if p.key != "" {
		text = p.key + ": " + text
	}
	if p.place.line > 0 {
		text = fmt.Sprintf("%s:%d:%d: %s", p.place.file, p.place.line, p.place.col, text)
	} else if p.place.file != "" {
		text = p.place.file + ": " + text
	}
	return text
}

// configError joins problems into one fault, a line each, in the order of the
// file; nil without any.
func configError(op fault.Op, problems []configProblem) error {
	if len(problems) == 0 {
		return nil
	}
	slices.SortStableFunc(problems, func(a, b configProblem) int {
		return cmp.Or(strings.Compare(a.place.file, b.place.file), cmp.Compare(a.place.line, b.place.line))
	})
	lines := make([]string, len(problems))
	for i, p := range problems {
		lines[i] = p.String()
	}
	return fault.New(op, fault.InvalidArgument, "%s", strings.Join(slices.Compact(lines), "\n"))
}
