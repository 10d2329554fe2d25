package db

import (
	"bytes"
	"embed"
	"io/fs"
	"path"
	"regexp"
)

//go:embed migrations/*.sql
var migrations embed.FS

// postgresWords are PostgreSQL's for words of our migrations, which write types in
// capitals. Integers have 64 bits, and text is compared byte by byte, as SQLite
// does both. A column is called only, which PostgreSQL reserves; queries write
// "only".
var postgresWords = map[string]string{
	"BLOB":    "BYTEA",
	"INTEGER": "BIGINT",
	"TEXT":    `TEXT COLLATE "C"`,
	"only":    `"only"`,

	" WITHOUT ROWID": "", // how SQLite makes the primary key the table's order
}

var words = regexp.MustCompile(`\b(BLOB|INTEGER|TEXT|only)\b| WITHOUT ROWID\b`)

// postgresMigrations are the migrations in PostgreSQL's words. There is one set of
// files, so the two schemas cannot drift apart.
type postgresMigrations struct{ fs.FS }

// Open implements fs.FS.
func (m postgresMigrations) Open(name string) (fs.File, error) {
	if path.Ext(name) != ".sql" {
		return m.FS.Open(name)
	}
	text, err := fs.ReadFile(m.FS, name)
	if err != nil {
		return nil, err
	}
	info, err := fs.Stat(m.FS, name)
	if err != nil {
		return nil, err
	}
	text = words.ReplaceAllFunc(text, func(name []byte) []byte { return []byte(postgresWords[string(name)]) })
	return migration{Reader: bytes.NewReader(text), info: info}, nil
}

// migration is one file of postgresMigrations. Its Stat is of the file before.
type migration struct {
	*bytes.Reader
	info fs.FileInfo
}

func (m migration) Stat() (fs.FileInfo, error) { return m.info, nil }
func (m migration) Close() error               { return nil }
