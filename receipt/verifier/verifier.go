// Package verifier holds the second verifier of bundles: plain JavaScript on
// vendored libraries, for browsers and for Node. It shares nothing with package
// receipt but the format, so that a mistake in one of them shows as a difference.
//
// vendor.json pins what is in noble and cborg: versions, the integrity of the
// packages' archives, and the SHA-256 of each file; vendor.mjs writes it anew.
package verifier

import "embed"

// Files has verify.mjs and what it imports.
//
//go:embed verify.mjs all:noble all:cborg
var Files embed.FS
