package guest

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
)

// connect opens a tunnel through the gateway. The gateway's refusal is relayed
// as the answer; after its consent the forwarder only carries bytes.
func (f *Forwarder) connect(w http.ResponseWriter, r *http.Request) {
	header := endToEnd(r.Header)
	setKey(header)
	var tunnel net.Conn
	var reader *bufio.Reader
	response, err := f.insist(r.Context(), func() (*http.Response, error) { //nolint:bodyclose,contextcheck // ends with the tunnel; r carries it
		conn, err := f.Dial(r.Context())
		if err != nil {
			return nil, err
		}
		stop := make(chan struct{})
		var watch sync.WaitGroup
		watch.Go(func() {
			select {
			case <-r.Context().Done():
				conn.Close()
			case <-stop:
			}
		})
		out := &http.Request{Method: http.MethodConnect, URL: &url.URL{Host: r.Host}, Host: r.Host, Header: header}
		reader = bufio.NewReader(conn)
		var response *http.Response
		if err = out.Write(conn); err == nil {
			response, err = http.ReadResponse(reader, out)
		}
		close(stop)
		watch.Wait()
		if err != nil {
			conn.Close()
			return nil, err
		}
		tunnel = conn
		return response, nil
	})
	if err != nil {
		refuse(w, r, err)
		return
	}
	defer tunnel.Close()
	if response.StatusCode/100 != 2 {
		relay(w, response)
		return
	}

	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		problem(w, http.StatusInternalServerError, "no_tunnel", "this connection cannot become a tunnel")
		return
	}
	defer client.Close()
	if _, err := io.WriteString(client, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	// What the program sent behind its request is still in the server's
	// buffer, and the gateway's first bytes may be in reader.
	var pumps sync.WaitGroup
	pumps.Go(func() { pump(tunnel, buffered.Reader, client) })
	pumps.Go(func() { pump(client, reader, tunnel) })
	pumps.Wait()
}

// pump copies from one side to the other and passes the end on: a half-close
// for an end, a full close for an error, so that a cut stream is noticed.
func pump(to net.Conn, from io.Reader, source net.Conn) {
	if _, err := io.Copy(to, from); err != nil {
		to.Close()
		source.Close()
		return
	}
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
		return
	}
	to.Close()
}
