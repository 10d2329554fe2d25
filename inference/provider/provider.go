// Package provider holds the clients of model providers, one file group per
// vendor's dialect, each an [inference.Model]. The dialect's encoders and
// decoders are exported, because a gateway that speaks it to agents needs the
// same ones the other way round.
//
// A client makes one HTTP request per call, without retries: those belong to
// package call, which knows whether they are safe.
package provider
