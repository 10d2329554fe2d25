package remoteaudit

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"creto.dev/audit"
	"creto.dev/fault"
	auditv1 "creto.dev/internal/gen/creto/audit/v1"
	"creto.dev/pqc"
)

// maxBatch bounds the records of one request.
const maxBatch = 1000

// maxWait is the longest that the server holds a question about the size.
const maxWait = 20 * time.Second

// Register has s serve log. Who may call is decided before (package serve); they
// log in anybody's name and read everything.
func Register(s grpc.ServiceRegistrar, log audit.Log) {
	auditv1.RegisterLogServiceServer(s, server{log: log})
}

type server struct {
	auditv1.UnimplementedLogServiceServer
	log audit.Log
}

// LogBatch implements auditv1.LogServiceServer.
func (s server) LogBatch(ctx context.Context, in *auditv1.LogBatchRequest) (*auditv1.LogBatchResponse, error) {
	const op fault.Op = "remoteaudit.LogBatch"
	if n := len(in.GetRecords()); n > maxBatch {
		return nil, fault.New(op, fault.InvalidArgument, "%d records at once; allowed are %d", n, maxBatch)
	}
	out := &auditv1.LogBatchResponse{Results: make([]*auditv1.Result, len(in.GetRecords()))}
	var records []audit.Record
	var places []int
	for i, data := range in.GetRecords() {
		r, err := recordFrom(op, data)
		if err != nil {
			out.Results[i] = result(err)
			continue
		}
		records, places = append(records, r), append(places, i)
	}
	for i, err := range s.log.LogBatch(ctx, records) {
		out.Results[places[i]] = result(err)
	}
	return out, nil
}

// recordFrom reads a record that is complete: whoever made it can hand it on again
// under the same id.
func recordFrom(op fault.Op, data []byte) (audit.Record, error) {
	r, err := audit.DecodeRecord(data)
	if err == nil && (r.ID.IsZero() || r.Stamp.IsZero()) {
		err = fault.New(op, fault.AuditValidationFailed, "a record that is handed on has an id and a stamp")
	}
	return r, err
}

func result(err error) *auditv1.Result {
	if err == nil {
		return &auditv1.Result{}
	}
	return &auditv1.Result{Code: fault.CodeOf(err).String(), Message: fault.Message(err)}
}

// LogSigned implements auditv1.LogServiceServer.
func (s server) LogSigned(ctx context.Context, in *auditv1.LogSignedRequest) (*auditv1.LogSignedResponse, error) {
	r, err := recordFrom("remoteaudit.LogSigned", in.GetRecord())
	if err != nil {
		return nil, err
	}
	sig := pqc.Signature{
		Algorithm: pqc.Algorithm(in.GetSignature().GetAlgorithm()), Key: pqc.KeyID(in.GetSignature().GetKey()), Bytes: in.GetSignature().GetBytes(),
	}
	_, err = s.log.LogSigned(ctx, r, sig, pqc.NewPublicKey(pqc.Algorithm(in.GetKeyAlgorithm()), in.GetKey()))
	return &auditv1.LogSignedResponse{}, err
}

// Entry implements auditv1.LogServiceServer.
func (s server) Entry(ctx context.Context, in *auditv1.EntryRequest) (*auditv1.EntryResponse, error) {
	var id audit.RecordID
	if len(in.GetId()) != len(id) {
		return nil, fault.New("remoteaudit.Entry", fault.InvalidArgument, "a record's id has %d bytes", len(id))
	}
	e, err := s.log.Entry(ctx, audit.RecordID(in.GetId()))
	if err != nil {
		return nil, err
	}
	x, err := s.entry(ctx, e)
	return &auditv1.EntryResponse{Entry: x}, err
}

// entry adds the keys of what is personal.
func (s server) entry(ctx context.Context, e audit.Entry) (*auditv1.Entry, error) {
	if len(e.Record.Personal) == 0 {
		return entryOf(e, nil), nil
	}
	keys, err := s.log.Disclose(ctx, e)
	return entryOf(e, keys), err
}

// Query implements auditv1.LogServiceServer.
func (s server) Query(ctx context.Context, in *auditv1.QueryRequest) (*auditv1.QueryResponse, error) {
	page, err := s.log.Query(ctx, filterFrom(in))
	if err != nil {
		return nil, err
	}
	out, size := &auditv1.QueryResponse{}, 0
	for _, e := range page {
		if size += len(e.Leaf); size > maxBatchBytes && len(out.Entries) > 0 {
			out.More = true
			break
		}
		x, err := s.entry(ctx, e)
		if err != nil {
			return nil, err
		}
		out.Entries = append(out.Entries, x)
	}
	return out, nil
}

// Wait implements auditv1.LogServiceServer.
func (s server) Wait(ctx context.Context, in *auditv1.WaitRequest) (*auditv1.WaitResponse, error) {
	held, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	size, err := s.log.Wait(held, in.GetSize())
	if err != nil && ctx.Err() == nil && held.Err() != nil {
		return &auditv1.WaitResponse{Size: in.GetSize()}, nil
	}
	return &auditv1.WaitResponse{Size: size}, err
}

// Checkpoint implements auditv1.LogServiceServer.
func (s server) Checkpoint(ctx context.Context, _ *auditv1.CheckpointRequest) (*auditv1.CheckpointResponse, error) {
	head, err := s.log.Checkpoint(ctx)
	if err != nil {
		return nil, err
	}
	return &auditv1.CheckpointResponse{Size: head.Size, Root: head.Root[:], Note: head.Note}, nil
}

// Proof implements auditv1.LogServiceServer.
func (s server) Proof(ctx context.Context, in *auditv1.ProofRequest) (*auditv1.ProofResponse, error) {
	hashes, err := s.log.Proof(ctx, in.GetIndex(), in.GetSize())
	return &auditv1.ProofResponse{Hashes: hashesOf(hashes)}, err
}

// Consistency implements auditv1.LogServiceServer.
func (s server) Consistency(ctx context.Context, in *auditv1.ConsistencyRequest) (*auditv1.ConsistencyResponse, error) {
	hashes, err := s.log.Consistency(ctx, in.GetFrom(), in.GetTo())
	return &auditv1.ConsistencyResponse{Hashes: hashesOf(hashes)}, err
}

// Ping implements auditv1.LogServiceServer.
func (s server) Ping(ctx context.Context, _ *auditv1.PingRequest) (*auditv1.PingResponse, error) {
	return &auditv1.PingResponse{}, s.log.Ping(ctx)
}
