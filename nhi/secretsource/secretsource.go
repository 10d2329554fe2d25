// Package secretsource reads secrets from where an organisation keeps them:
// environment variables, files, OpenBao or HashiCorp Vault. Each is an
// nhi.SecretSource; which agents may have which value is the authority's to say.
package secretsource

import (
	"regexp"
	"strings"

	"creto.dev/fault"
)

// The schemes of a [Reference].
const (
	SchemeStore = "store" // the authority's own
	SchemeEnv   = "env"
	SchemeFile  = "file"
	SchemeVault = "vault"
)

// Reference says where a secret's value is: scheme:locator, as in
//
//	env:SHOP_KEY
//	file:shop/api_key
//	vault:kv/shop#api_key     mount kv, path shop, field api_key
//	store:shop-key
type Reference struct {
	Scheme string
	// Locator is what the scheme's source takes.
	Locator string
}

// String returns the text that ParseReference reads.
func (r Reference) String() string { return r.Scheme + ":" + r.Locator }

// maxReferenceBytes bounds a reference.
const maxReferenceBytes = 1 << 10

// ParseReference reads a reference. What it returns has a locator of its scheme's
// form: no part of a path is empty, "." or "..", or begins with a dot.
//
// Errors: InvalidArgument (Permanent).
func ParseReference(text string) (Reference, error) {
	const op fault.Op = "secretsource.ParseReference"
	scheme, locator, _ := strings.Cut(text, ":")
	r := Reference{Scheme: scheme, Locator: locator}
	ok := len(text) <= maxReferenceBytes
	switch scheme {
	case SchemeStore:
		ok = ok && name.MatchString(locator)
	case SchemeEnv:
		ok = ok && variable.MatchString(locator)
	case SchemeFile:
		ok = ok && isPath(locator)
	case SchemeVault:
		_, err := parseVaultLocator(locator)
		ok = ok && err == nil
	default:
		ok = false
	}
	if !ok {
		// It is not quoted: it may be the secret itself, in the wrong place.
		return Reference{}, fault.New(op, fault.InvalidArgument, "not a reference to a secret; write store:NAME, env:VARIABLE, file:PATH or vault:MOUNT/PATH#FIELD")
	}
	return r, nil
}

// What references are made of. No part of them means anything to a shell, a file
// system or a URL.
var (
	name     = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]*$`)
	variable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	element  = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]*$`)
)

// isPath reports whether text is made of plain elements with slashes between.
func isPath(text string) bool {
	for part := range strings.SplitSeq(text, "/") {
		if !element.MatchString(part) {
			return false
		}
	}
	return true
}
