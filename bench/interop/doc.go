// Package interop holds the audit log and the witness to programs that others
// wrote: Tessera's client and fsck read our log over HTTP, Tessera's log is
// cosigned by our witness, and our log by litewitness. It is in this module so
// that the product's go.mod names none of them.
package interop
