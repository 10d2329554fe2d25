package serve

import (
	"bytes"
	"mime"
	"net/http"

	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	"creto.dev/fault"
	"creto.dev/fault/faultgrpc"
	"creto.dev/fault/faulthttp"
)

// maxStatusBytes bounds a status that is made into a problem.
const maxStatusBytes = 64 << 10

// problems makes the google.rpc.Status with which next answers a request that
// failed into problem details, as every other answer of ours over HTTP is
// (R-ERR-8). The errors of Connect's and gRPC-Web's own protocols are not touched.
func problems(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := &problemWriter{ResponseWriter: w}
		next.ServeHTTP(p, r)
		if p.held == nil {
			return
		}
		var st statuspb.Status
		if err := protojson.Unmarshal(p.held.Bytes(), &st); err != nil || st.GetCode() == int32(codes.OK) {
			w.WriteHeader(p.status)
			_, _ = w.Write(p.held.Bytes()) // a client that went away is no fault of ours
			return
		}
		const op fault.Op = "serve.problems"
		if st.GetCode() == int32(codes.InvalidArgument) && len(st.GetDetails()) == 0 {
			// It comes from the transcoder, which says what is wrong with the
			// request's JSON.
			faulthttp.Write(w, r, fault.New(op, fault.InvalidArgument, "%s", st.GetMessage()))
			return
		}
		faulthttp.Write(w, r, faultgrpc.Read(r.Context(), op, status.FromProto(&st).Err()))
	})
}

// problemWriter holds back the JSON of an answer that reports a failure.
type problemWriter struct {
	http.ResponseWriter
	status int
	held   *bytes.Buffer
}

// WriteHeader implements http.ResponseWriter.
func (p *problemWriter) WriteHeader(code int) {
	if media, _, err := mime.ParseMediaType(p.Header().Get("Content-Type")); code >= http.StatusBadRequest && err == nil && media == "application/json" {
		p.status, p.held = code, new(bytes.Buffer)
		return
	}
	p.ResponseWriter.WriteHeader(code)
}

// Write implements http.ResponseWriter.
func (p *problemWriter) Write(b []byte) (int, error) {
	if p.held == nil {
		return p.ResponseWriter.Write(b)
	}
	if p.held.Len()+len(b) <= maxStatusBytes {
		p.held.Write(b)
	}
	return len(b), nil
}

// Flush implements http.Flusher.
func (p *problemWriter) Flush() {
	if p.held == nil {
		_ = http.NewResponseController(p.ResponseWriter).Flush() // as without it
	}
}

// Unwrap is for http.ResponseController.
func (p *problemWriter) Unwrap() http.ResponseWriter { return p.ResponseWriter }
