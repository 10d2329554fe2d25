package export

import (
	"testing"

	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/protobuf/proto"

	"creto.dev/audit"
)

// Proto returns an entry's record of OTLP, which must be one on the wire too.
func Proto(t *testing.T, origin string, e audit.Entry) *logspb.LogRecord {
	t.Helper()
	r, err := logRecord(origin, e)
	if err != nil {
		t.Fatal(err)
	}
	data, err := proto.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var back logspb.LogRecord
	if err := proto.Unmarshal(data, &back); err != nil || !proto.Equal(&back, r) {
		t.Fatalf("%v comes back as %v, %v", r, &back, err)
	}
	return r
}
