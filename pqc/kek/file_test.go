package kek

import (
	"bytes"
	"encoding/base64"
	"testing"

	"creto.dev/internal/canon"
	"creto.dev/pqc"
)

func FuzzParse(f *testing.F) {
	f.Add([]byte(base64.StdEncoding.EncodeToString(make([]byte, 32)) + "\n"))
	for _, seed := range []file{
		{Version: 1, Source: SourceKMS, Key: "k", Wrapped: []byte("vault:v1:x")},
		{Version: 1, Source: SourcePassphrase, Key: "k", Stretch: stretch{passes, memoryKiB, lanes, make([]byte, saltBytes)}, Wrapped: []byte{1}},
	} {
		data, err := canon.Marshal(seed)
		if err != nil {
			f.Fatal(err)
		}
		if got, err := parse(data); err != nil || got.Source != seed.Source {
			f.Fatalf("parse = %+v, %v; want %+v", got, err, seed)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := parse(data)
		if err != nil {
			return
		}
		switch got.Source {
		case SourceFile:
			if again := base64.StdEncoding.EncodeToString(got.Wrapped); len(got.Wrapped) != pqc.SymmetricKeySize || again != string(bytes.TrimSpace(data)) {
				t.Errorf("%q is read as %q", data, again)
			}
			return
		case SourcePassphrase:
			if err := got.Stretch.validate(); err != nil {
				t.Error(err)
			}
		case SourceKMS:
		default:
			t.Errorf("source %q", got.Source)
		}
		if again, err := canon.Marshal(got); err != nil || !bytes.Equal(again, data) {
			t.Errorf("%x is read as %x (err %v)", data, again, err)
		}
	})
}
