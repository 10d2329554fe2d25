package export

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"syscall"

	"github.com/aws/smithy-go"
	"gocloud.dev/blob"
	"gocloud.dev/blob/s3blob"
	"gocloud.dev/gcerrors"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
)

// Open returns the destination that to names: "-" is out, s3://BUCKET/PREFIX a
// bucket, http:// and https:// a collector, which takes OTLP and nothing else; see
// [NewWriter], [NewBucket] and [NewCollector]. Anything else is the caller's to
// open, as a file.
//
// Errors: InvalidArgument (Permanent) for a format that does not go there, and
// theirs.
func Open(ctx context.Context, f Format, origin, to string, out io.Writer, headers map[string]creto.Secret) (Destination, error) {
	const op fault.Op = "export.Open"
	scheme, _, _ := strings.Cut(to, "://")
	web := scheme == "http" || scheme == "https"
	switch {
	case web != (f == OTLP):
		return nil, fault.New(op, fault.InvalidArgument, "the format otlp goes to a collector, https://HOST, and all others to a file or a bucket")
	case web:
		return NewCollector(origin, to, headers)
	case scheme == "s3" && scheme != to:
		return NewBucket(ctx, f, origin, to)
	}
	return NewWriter(f, origin, out), nil
}

// Remote reports whether to is somewhere else than a file.
func Remote(to string) bool {
	scheme, _, found := strings.Cut(to, "://")
	return found && (scheme == "http" || scheme == "https" || scheme == "s3")
}

// writer writes lines.
type writer struct {
	format Format
	origin string
	out    *bufio.Writer
	sync   func() error // may be nil
}

// NewWriter returns a destination that writes lines to w. Where w has a method
// Sync, as an *os.File has, a batch is on disk when Write returns. It does not
// close w.
//
// Errors: of Write: FailedPrecondition (Permanent) if w fails: what was written of a
// batch cannot be taken back, so it is not tried again.
func NewWriter(f Format, origin string, w io.Writer) Destination {
	d := &writer{format: f, origin: origin, out: bufio.NewWriter(w)}
	if s, ok := w.(interface{ Sync() error }); ok {
		d.sync = s.Sync
	}
	return d
}

// Write implements Destination.
func (w *writer) Write(_ context.Context, batch []audit.Entry) (int64, error) {
	const op fault.Op = "export.Write"
	if err := lines(w.out, w.format, w.origin, batch); err != nil {
		return 0, fault.Wrap(op, err)
	}
	if err := w.out.Flush(); err != nil {
		return 0, fault.WrapAs(op, fault.FailedPrecondition, err, "the export cannot be written; is the disk full?")
	}
	if w.sync != nil {
		if err := w.sync(); err != nil && !errors.Is(err, syscall.EINVAL) { // what is no file cannot be synced

			return 0, fault.WrapAs(op, fault.FailedPrecondition, err, "the export cannot be brought to disk; is it full?")
		}
	}
	return 0, nil
}

// Close implements Destination.
func (w *writer) Close() error { return nil }

// lines writes a batch as lines.
func lines(w io.Writer, f Format, origin string, batch []audit.Entry) error {
	for _, e := range batch {
		data, err := f.EncodeLine(origin, e)
		if err != nil {
			return err
		}
		if _, err := w.Write(append(data, '\n')); err != nil {
			return fault.WrapAs("export.lines", fault.FailedPrecondition, err, "the export cannot be written; is the disk full?")
		}
	}
	return nil
}

// bucket is S3, or what speaks it.
type bucket struct {
	format Format
	origin string
	name   string
	blob   *blob.Bucket
}

// NewBucket returns a destination that writes each batch as one object of lines,
// compressed by gzip: PREFIX/FIRST-LAST.FORMAT.jsonl.gz, by the indexes of its
// records in twenty digits. The same batch is the same object. Where is
// s3://BUCKET/PREFIX; as parameters it takes region, endpoint and use_path_style
// for other services than Amazon's; credentials are those of the AWS SDK's
// environment.
//
// Errors: InvalidArgument (Permanent) for a URL that is wrong. Of Write:
// FailedPrecondition (Permanent) if the bucket is not there or refuses the
// credentials; Unavailable (Degraded) otherwise.
func NewBucket(ctx context.Context, f Format, origin, where string) (Destination, error) {
	const op fault.Op = "export.NewBucket"
	u, err := url.Parse(where)
	if err != nil || u.Scheme != "s3" || u.Host == "" || u.User != nil {
		return nil, fault.New(op, fault.InvalidArgument, "a bucket is given as s3://BUCKET/PREFIX, and credentials in the environment")
	}
	if f == OTLP {
		return nil, fault.New(op, fault.InvalidArgument, "a bucket takes lines: jsonl, cloudevents or ocsf")
	}
	prefix := strings.Trim(u.Path, "/")
	u.Path = ""
	opened, err := (&s3blob.URLOpener{}).OpenBucketURL(ctx, u)
	if err != nil {
		return nil, fault.WrapAs(op, fault.InvalidArgument, err, "the bucket %s cannot be used: its parameters are region, endpoint and use_path_style", u.Host)
	}
	if prefix != "" {
		opened = blob.PrefixedBucket(opened, prefix+"/")
	}
	return &bucket{format: f, origin: origin, name: u.Host, blob: opened}, nil
}

// Write implements Destination.
func (b *bucket) Write(ctx context.Context, batch []audit.Entry) (int64, error) {
	const op fault.Op = "export.Write"
	var packed bytes.Buffer
	zip := gzip.NewWriter(&packed)
	if err := lines(zip, b.format, b.origin, batch); err != nil {
		return 0, fault.Wrap(op, err)
	}
	if err := zip.Close(); err != nil {
		return 0, fault.Wrap(op, err)
	}
	name := fmt.Sprintf("%020d-%020d.%s.gz", batch[0].Index, batch[len(batch)-1].Index, b.suffix())
	err := b.blob.WriteAll(ctx, name, packed.Bytes(), &blob.WriterOptions{ContentType: "application/gzip", DisableContentTypeDetection: true})
	switch {
	case err == nil:
		return 0, nil
	case ctx.Err() != nil:
		return 0, fault.Wrap(op, ctx.Err())
	}
	switch gcerrors.Code(err) {
	case gcerrors.NotFound:
		return 0, fault.WrapAs(op, fault.FailedPrecondition, err, "there is no bucket %s", b.name)
	case gcerrors.PermissionDenied:
		return 0, fault.WrapAs(op, fault.FailedPrecondition, err, "the bucket %s does not accept the credentials", b.name)
	}
	return 0, b.refused(err)
}

func (b *bucket) suffix() string {
	if b.format == JSONLines {
		return "jsonl"
	}
	return string(b.format) + ".jsonl"
}

// Close implements Destination.
func (b *bucket) Close() error { return fault.Wrap("export.Close", b.blob.Close()) }

// refused tells errors apart that the library does not, by S3's codes and by the
// status: what a server says no to it will say no to again.
func (b *bucket) refused(err error) error {
	const op fault.Op = "export.Write"
	if api, ok := errors.AsType[smithy.APIError](err); ok && api.ErrorCode() == "NoSuchBucket" {
		return fault.WrapAs(op, fault.FailedPrecondition, err, "there is no bucket %s", b.name)
	}
	type answer interface {
		error
		HTTPStatusCode() int
	}
	if a, ok := errors.AsType[answer](err); ok {
		switch code := a.HTTPStatusCode(); {
		case code == http.StatusRequestTimeout, code == http.StatusTooManyRequests: // another time
		case code >= 400 && code < 500:
			return fault.WrapAs(op, fault.FailedPrecondition, err, "the bucket %s does not accept the credentials, or the address is not its (%d)", b.name, code)
		}
	}
	return fault.WrapAs(op, fault.Unavailable, err, "the bucket %s cannot be written", b.name)
}
