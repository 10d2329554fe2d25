package kek

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/url"
	"slices"
	"strings"

	"creto.dev"
	"creto.dev/fault"
)

// Source says what protects the key.
type Source string

// The sources.
const (
	// SourceFile keeps the key as it is: whoever reads the file has it.
	SourceFile Source = "file"
	// SourcePassphrase keeps it under a passphrase, by argon2id.
	SourcePassphrase Source = "passphrase"
	// SourceKMS keeps it under a key management service's key.
	SourceKMS Source = "kms"
)

// Config says where the key comes from. The zero value is SourceFile.
type Config struct {
	// Source is file, passphrase or kms; "" means file.
	Source Source `toml:"source"`
	// Passphrase, of SourcePassphrase, or else the content of PassphraseFile
	// without its last line end. Never an argument of a command: those are
	// public on the machine.
	Passphrase     creto.Secret `toml:"passphrase"`
	PassphraseFile string       `toml:"passphrase_file"`
	// KMSURL, of SourceKMS, is hashivault://NAME for a key of the transit
	// engine of HashiCorp Vault or OpenBao, found and authenticated as their
	// own client does (VAULT_ADDR, VAULT_TOKEN, VAULT_CACERT …); or, for tests,
	// base64key:// and a key, which makes the URL secret.
	KMSURL creto.Secret `toml:"kms_url"`
}

// minPassphrase is the shortest passphrase that may be chosen, in bytes: NIST SP
// 800-63B-4, section 3.1.1, for one that is the only factor. White space around it
// does not count.
const minPassphrase = 15

// Problems yields each wrong key of the configuration with what is wrong. The
// text holds no secret.
func (c Config) Problems() iter.Seq2[string, string] {
	return func(yield func(key, text string) bool) {
		source := c.source()
		if source != SourceFile && source != SourcePassphrase && source != SourceKMS {
			yield("source", fmt.Sprintf("%q is not one of file, passphrase, kms", source))
			return
		}
		one := !c.Passphrase.IsZero() != (c.PassphraseFile != "")
		if source == SourcePassphrase && !one && !yield("passphrase", `one of passphrase and passphrase_file is required with source = "passphrase"`) {
			return
		}
		if source != SourcePassphrase && !c.Passphrase.IsZero() && !yield("passphrase", `needs source = "passphrase"`) {
			return
		}
		if source != SourcePassphrase && c.PassphraseFile != "" && !yield("passphrase_file", `needs source = "passphrase"`) {
			return
		}
		if source != SourceKMS && !c.KMSURL.IsZero() && !yield("kms_url", `needs source = "kms"`) {
			return
		}
		if source == SourceKMS {
			if _, text := c.keeperURL(); text != "" {
				yield("kms_url", text)
			}
		}
	}
}

// Validate reports every problem of c, a line each.
//
// Errors: InvalidArgument (Permanent).
func (c Config) Validate() error {
	var problems []error
	for key, text := range c.Problems() {
		problems = append(problems, errors.New(key+": "+text))
	}
	if len(problems) == 0 {
		return nil
	}
	err := errors.Join(problems...)
	return fault.WrapAs("kek.Config.Validate", fault.InvalidArgument, err, "%s", err.Error())
}

func (c Config) source() Source {
	if c.Source == "" {
		return SourceFile
	}
	return c.Source
}

// keeperURL returns the KMS's URL, or what is wrong with it. It is not quoted: it
// may hold a key.
func (c Config) keeperURL() (*url.URL, string) {
	u, err := url.Parse(c.KMSURL.Reveal())
	if err != nil {
		return nil, "is no URL"
	}
	if _, ok := keepers[u.Scheme]; !ok {
		return nil, "begins with none of " + strings.Join(slices.Sorted(maps.Keys(keepers)), "://, ") + "://"
	}
	// A base64key:// without a key would be a new one at each start.
	if u.Host == "" {
		return nil, "names no key after " + u.Scheme + "://"
	}
	return u, ""
}
