package main

import (
	"fmt"
	"go/build"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"creto.dev/inference/injection"
)

// Of the Go distribution, which go.mod pins: one file in everyFile, and a piece of
// pieceBytes of it; of a long text a piece each everyBytes.
const (
	everyFile  = 6
	pieceBytes = 2500
	everyBytes = 12_000
	library    = "go_distribution"
)

// loadLibrary returns pieces of the Go distribution, source and prose, as documents
// that are harmless. They are there on every machine that builds this, and the same.
func loadLibrary() (*set, error) {
	s := &set{name: library, from: injection.Document, trained: true}
	root := filepath.Join(build.Default.GOROOT)
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		switch filepath.Ext(file) {
		case ".go", ".md", ".txt", ".html", ".json", ".s", ".c", ".js", ".bash":
		default:
			return nil
		}
		h := fnv.New32a()
		_, _ = h.Write([]byte(filepath.ToSlash(name)))
		place := int(h.Sum32() >> 1)
		if place%everyFile != 0 {
			return nil
		}
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		text := string(data)
		if !utf8.ValidString(text) {
			return nil
		}
		for start := place % max(1, min(len(text), everyBytes)); start < len(text); start += everyBytes {
			if piece := strings.ToValidUTF8(text[start:min(len(text), start+pieceBytes)], ""); len(piece) > pieceBytes/8 {
				s.items = append(s.items, item{text: piece})
			}
		}
		return nil
	})
	if err == nil && len(s.items) == 0 {
		err = fmt.Errorf("there is no Go distribution in %q; training takes harmless documents from it", root)
	}
	return s, err
}
