// Package llamacpptest runs llama.cpp for tests: a real inference engine, with a
// model of random weights that this package makes (see [Model]) and a small HTTP
// server of ours in front of the library (server.mjs), since no package ships
// llama.cpp's own server. What it shows is therefore that clients get along with
// what an engine does (real tokens, counts, streams that are generated while they
// are read, generation that stops), not that they get along with the words of
// llama.cpp's server.
package llamacpptest

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"creto.dev"
)

// ModelName is what the server calls its model.
const ModelName = "random-0.1m"

//go:embed server.mjs
var program []byte

//go:embed package.json
var manifest []byte

// Server is a running llama.cpp.
type Server struct {
	// URL is the base URL of the dialect, with /v1.
	URL string
	// APIKey is what it wants.
	APIKey creto.Secret
}

// Slots is what the engine did since it was started.
type Slots struct {
	// Active is the number of requests that are being worked on, 0 or 1.
	Active int
	// Served and GivenUp are those that ended, with and without a client.
	Served, GivenUp int
	// Tokens were generated for them.
	Tokens int
}

// Start runs llama.cpp until the test ends. Where it is not installed the test
// is skipped, or fails if CRETO_TEST_REQUIRE is 1.
func Start(t testing.TB) *Server {
	t.Helper()
	node, library := find(t)
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	s := &Server{APIKey: creto.NewSecret("sk-llama-planted")}
	ctx, cancel := context.WithCancel(t.Context())
	command := exec.CommandContext(ctx, node, write("server.mjs", program), library, write("model.gguf", Model()), ModelName)
	command.Env = append(os.Environ(), "LLAMA_API_KEY="+s.APIKey.Reveal())
	command.WaitDelay = 5 * time.Second
	var complaints strings.Builder
	command.Stderr = &complaints
	input, err := command.StdinPipe() // it ends with this process, however that ends
	if err != nil {
		t.Fatal(err)
	}
	output, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = input.Close()
		_ = command.Wait()
	})
	late := time.AfterFunc(time.Minute, cancel)
	port, err := bufio.NewReader(output).ReadString('\n')
	late.Stop()
	if err != nil {
		_ = command.Wait() // complaints are complete
		t.Fatalf("llama.cpp did not start: %v\n%s", err, complaints.String())
	}
	s.URL = "http://127.0.0.1:" + strings.TrimSpace(port) + "/v1"
	return s
}

// Slots asks the engine what it did.
func (s *Server) Slots(t testing.TB) Slots {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, strings.TrimSuffix(s.URL, "/v1")+"/slots", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+s.APIKey.Reveal())
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	_ = response.Body.Close()
	var slots struct {
		Active, Served, Tokens int
		GivenUp                int `json:"given_up"`
	}
	if err != nil || json.Unmarshal(body, &slots) != nil {
		t.Fatalf("slots: %v %s", err, body)
	}
	return Slots{Active: slots.Active, Served: slots.Served, GivenUp: slots.GivenUp, Tokens: slots.Tokens}
}

// find returns Node and the directory of llama.cpp's library, which
// scripts/install-llamacpp puts into the repository's cache.
func find(t testing.TB) (node, library string) {
	t.Helper()
	missing := func(what string) {
		t.Helper()
		if os.Getenv("CRETO_TEST_REQUIRE") == "1" {
			t.Fatalf("llama.cpp: %s; run: make setup", what)
		}
		t.Skipf("llama.cpp: %s; run: make setup", what)
	}
	root, err := os.Getwd()
	for err == nil {
		if _, err := os.Stat(filepath.Join(root, ".cache", "llamacpp")); err == nil || filepath.Dir(root) == root {
			break
		}
		root = filepath.Dir(root)
	}
	machine := "linux-" + map[string]string{"amd64": "x64", "arm64": "arm64"}[runtime.GOARCH]
	if runtime.GOOS != "linux" {
		missing("nothing is pinned for " + runtime.GOOS)
	}
	var want struct{ OptionalDependencies map[string]string }
	if err := json.Unmarshal(manifest, &want); err != nil {
		t.Fatal(err)
	}
	home := filepath.Join(root, ".cache", "llamacpp", "node_modules", "@node-llama-cpp", machine)
	var have struct{ Version string }
	if raw, err := os.ReadFile(filepath.Join(home, "package.json")); err != nil || json.Unmarshal(raw, &have) != nil || have.Version != want.OptionalDependencies["@node-llama-cpp/"+machine] {
		missing("the pinned version is not in .cache/llamacpp")
	}
	if node, err = exec.LookPath("node"); err != nil {
		missing("there is no node")
	}
	return node, filepath.Join(home, "bins", machine)
}
