// Package canon is the one encoder of bytes that are signed or hashed:
// deterministic CBOR (RFC 8949, section 4.2.1). The same value always gives the
// same bytes, and only those bytes decode to it (R-GAP-9, B-58).
//
// Values are structs with `cbor:"N,keyasint"` tags, without floats. A field is
// never renumbered or reused.
package canon

import (
	"bytes"

	"github.com/fxamacker/cbor/v2"

	"creto.dev/fault"
)

// MaxBytes bounds what Unmarshal accepts.
const MaxBytes = 64 << 20

// maxNesting bounds the depth of what Unmarshal accepts.
const maxNesting = 16

// modes are built once from constant options; they are immutable and safe for
// concurrent use.
var (
	encoder = must(cbor.EncOptions{
		Sort:          cbor.SortCoreDeterministic,
		IndefLength:   cbor.IndefLengthForbidden,
		TagsMd:        cbor.TagsForbidden,
		NilContainers: cbor.NilContainerAsEmpty,
		TextMarshaler: cbor.TextMarshalerTextString,
	}.EncMode())
	decoder = must(cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		UTF8:              cbor.UTF8RejectInvalid,
		MaxNestedLevels:   maxNesting,
		TextUnmarshaler:   cbor.TextUnmarshalerTextString,
	}.DecMode())
)

func must[M any](mode M, err error) M {
	if err != nil {
		panic("canon: constant options are invalid: " + err.Error())
	}
	return mode
}

// Marshal returns the canonical bytes of v.
//
// Errors: Internal (Permanent) if v has a type that has no canonical form,
// which is a programmer's mistake.
func Marshal(v any) ([]byte, error) {
	data, err := encoder.Marshal(v)
	return data, fault.WrapAs("canon.Marshal", fault.Internal, err, "%T has no canonical form", v)
}

// UnmarshalPart reads a value inside another one, for a type's own
// cbor.Unmarshaler. Whether the bytes are canonical is found by Unmarshal of the
// whole, which encodes it again.
//
// Errors: InvalidArgument (Permanent).
func UnmarshalPart(data []byte, v any) error {
	return fault.WrapAs("canon.UnmarshalPart", fault.InvalidArgument, decoder.Unmarshal(data, v), "not a canonical encoding")
}

// Unmarshal reads data into the struct that v points to. It accepts canonical
// bytes only: no unknown or repeated keys, no trailing bytes, no other encoding
// of the same value.
//
// Errors: InvalidArgument (Permanent).
func Unmarshal(data []byte, v any) error {
	const op fault.Op = "canon.Unmarshal"
	if len(data) > MaxBytes {
		return fault.New(op, fault.InvalidArgument, "%d bytes are more than the limit of %d", len(data), MaxBytes)
	}
	if err := decoder.Unmarshal(data, v); err != nil {
		return fault.WrapAs(op, fault.InvalidArgument, err, "not a canonical encoding")
	}
	again, err := encoder.Marshal(v)
	if err != nil {
		return fault.WrapAs(op, fault.InvalidArgument, err, "not a canonical encoding")
	}
	if !bytes.Equal(data, again) {
		return fault.New(op, fault.InvalidArgument, "not a canonical encoding: the same value has other bytes")
	}
	return nil
}
