package audit_test

import (
	"bytes"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"testing"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/audittest"
	"creto.dev/internal/canon"
)

// fill gives every field that it can reach a random value, often an empty or an
// extreme one. A field of a kind that it does not know fails the test, as does one
// that the hand-written encoding forgot.
func fill(t testing.TB, random *rand.Rand, v reflect.Value) {
	switch x := v.Addr().Interface().(type) {
	case *creto.ID:
		*x = audittest.Human([]string{"alice", "bob", "x"}[random.IntN(3)])
		if random.IntN(3) == 0 {
			x.Kind = creto.KindAgent
		}
		return
	}
	switch v.Kind() {
	case reflect.String:
		lengths := []int{0, 1, 5, 23, 24, 255, 256, 300}
		b := make([]byte, lengths[random.IntN(len(lengths))])
		for i := range b {
			b[i] = byte('a' + random.IntN(26))
		}
		v.SetString(string(b))
	case reflect.Int64:
		v.SetInt([]int64{0, 1, 23, 24, -1, -24, -25, 1 << 40, math.MaxInt64, math.MinInt64, 255, 256, 65535, 65536, math.MaxUint32, math.MaxUint32 + 1}[random.IntN(16)])
	case reflect.Uint64:
		v.SetUint([]uint64{0, 1, 23, 24, 1 << 40, math.MaxUint64}[random.IntN(6)])
	case reflect.Bool:
		v.SetBool(random.IntN(2) == 0)
	case reflect.Array:
		if random.IntN(3) > 0 {
			for i := range v.Len() {
				v.Index(i).SetUint(uint64(random.IntN(256)))
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, random, v.Field(i))
		}
	case reflect.Pointer:
		if random.IntN(3) > 0 {
			v.Set(reflect.New(v.Type().Elem()))
			fill(t, random, v.Elem())
		}
	case reflect.Slice:
		n := []int{0, 1, 2, 30}[random.IntN(4)]
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			if v.Type().Elem().Kind() == reflect.Uint8 {
				v.Index(i).SetUint(uint64(random.IntN(256)))
				continue
			}
			fill(t, random, v.Index(i))
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range []int{0, 1, 3, 30}[random.IntN(4)] {
			k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			fill(t, random, k)
			fill(t, random, e)
			v.SetMapIndex(k, e)
		}
	default:
		t.Fatalf("a record has a field of type %v, which this test does not fill", v.Type())
	}
}

// The bytes that are written by hand are those of package canon for the same
// record, and are read back as what they are.
func TestCodec(t *testing.T) {
	random := rand.New(rand.NewPCG(4, 2))
	compared, records := 0, 3000
	if os.Getenv("CRETO_TORTURE") != "" {
		records = 200_000
	}
	for range records {
		var r audit.Record
		fill(t, random, reflect.ValueOf(&r).Elem())
		want, err := canon.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := r.Encode()
		if err != nil {
			continue // incomplete, or too large
		}
		compared++
		if !bytes.Equal(got, want) {
			t.Fatalf("Encode(%+v)\n = %x\nwant %x", r, got, want)
		}
		again, err := audit.DecodeTrusted(want)
		if err != nil {
			t.Fatalf("DecodeTrusted of %+v = %v", r, err)
		}
		strict, err := audit.DecodeRecord(want)
		if err != nil {
			t.Fatal(err)
		}
		a, errA := canon.Marshal(again)
		b, errB := canon.Marshal(strict)
		if errA != nil || errB != nil || !bytes.Equal(a, want) || !bytes.Equal(b, want) {
			t.Fatalf("%+v is read as %+v by hand and as %+v by package canon", r, again, strict)
		}
		signing, err := r.SigningBytes()
		if err != nil {
			t.Fatal(err)
		}
		bare := r
		bare.Stamp, bare.Signature, bare.SignatureStatus, bare.Personal = creto.Timestamp{}, nil, "", nil
		if want, err := canon.Marshal(bare); err != nil || !bytes.Equal(signing, want) {
			t.Fatalf("SigningBytes(%+v) = %x, want %x", r, signing, want)
		}
	}
	if compared < records/4 {
		t.Errorf("only %d records of %d were compared", compared, records)
	}
}

// Whatever is a record for package canon is one for the reader by hand; and it
// reads nothing else without an error or as something that has other bytes, unless
// those are no canonical encoding.
func FuzzCodec(f *testing.F) {
	r := audittest.Record(creto.CallModel, 1)
	r.Stamp = creto.Timestamp{Logical: 1, Physical: 2, Source: creto.SourceConsensus, Node: "n"}
	r.Detail = map[string]string{"a": "b"}
	leaf, err := r.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(leaf)
	f.Fuzz(func(t *testing.T, data []byte) {
		strict, err := audit.DecodeRecord(data)
		fast, errFast := audit.DecodeTrusted(data)
		if err != nil {
			return
		}
		if errFast != nil {
			t.Fatalf("DecodeTrusted refuses %+v: %v", strict, errFast)
		}
		again, err := canon.Marshal(fast)
		if err != nil || !bytes.Equal(again, data) {
			t.Errorf("%x is read as %x", data, again)
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	r := audittest.Record(creto.CallModel, 1)
	r.Stamp = creto.Timestamp{Logical: 1, Physical: 2, Source: creto.SourceConsensus, Node: "n"}
	r.Detail = map[string]string{"provider": "openai", "status": "200"}
	r.OnBehalfOf = audittest.Human("alice")
	b.Run("by hand", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := r.Encode(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("canon", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := canon.Marshal(r); err != nil {
				b.Fatal(err)
			}
		}
	})
}
