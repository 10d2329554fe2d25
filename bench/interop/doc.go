// Package interop holds the product to programs that others wrote. The audit log
// and the witness: Tessera's client and fsck read our log over HTTP, Tessera's log
// is cosigned by our witness, and our log by litewitness. The gateway: the SDKs of
// OpenAI and Anthropic are its clients. It is in this module so that the product's
// go.mod names none of them.
package interop
