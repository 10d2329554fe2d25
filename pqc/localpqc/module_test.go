//go:build wycheproof

package localpqc

// The tests read the module's files where it was downloaded to. This import only
// keeps it in go.mod: compiled, it would embed 100 MB.
import _ "github.com/c2sp/wycheproof"
