package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/rogpeppe/go-internal/testscript"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/eventlog/sqlite"
	"github.com/pinnacehq/pinnace/internal/identity"
	"github.com/pinnacehq/pinnace/internal/registry/embedded"
	"github.com/pinnacehq/pinnace/internal/secret"
	"github.com/pinnacehq/pinnace/internal/server"
)

const scriptToken = "the-admin-token-of-the-scripts"

// TestPlatformScript runs testdata/platform: promises that take a server and a registry, which are real and in
// this process, but no agent. $REGISTRY is the registry's address.
func TestPlatformScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/platform",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status":   status,
			"image":    pushImage,
			"variant":  pushVariant,
			"host":     joinHost,
			"agent":    runAgent,
			"setenv":   setFromFile,
			"removed":  removeLayers,
			"tampered": changeIndexes,
		},
		Setup: func(e *testscript.Env) error {
			registry, err := startRegistry(e, filepath.Join(e.WorkDir, ".registry"))
			if err != nil {
				return err
			}
			api, agents, err := startServer(e, filepath.Join(e.WorkDir, ".server"))
			if err != nil {
				return err
			}
			for name, value := range map[string]string{
				"HOME": e.WorkDir, "XDG_CONFIG_HOME": "", "XDG_CACHE_HOME": "", "REGISTRY": registry, "PINNACE_SERVER": api, "PINNACE_TOKEN": scriptToken,
				"AGENTS": agents,
			} {
				e.Setenv(name, value)
			}
			return nil
		},
	})
}

func startRegistry(e *testscript.Env, dir string) (addr string, err error) {
	r, err := embedded.New(embedded.Options{Dir: dir, Addr: "127.0.0.1:0"})
	if err != nil {
		return "", err
	}
	background(e, r.Run)
	return r.Addr(), nil
}

func startServer(e *testscript.Env, dir string) (url, agentURL string, err error) {
	authority, err := identity.NewAuthority(time.Now())
	if err != nil {
		return "", "", err
	}
	text, err := secret.GenerateKey()
	if err != nil {
		return "", "", err
	}
	keys, err := secret.ParseKeys(text)
	if err != nil {
		return "", "", err
	}
	store, err := secret.OpenDir(filepath.Join(dir, "secrets"))
	if err != nil {
		return "", "", err
	}
	s, err := server.New(context.Background(), server.Options{
		Engine: sqlite.New(sqlite.Options{Dir: dir}), Logger: slog.New(slog.DiscardHandler), Version: version,
		AdminToken: scriptToken, Authority: authority, HostTimeout: time.Hour, Keys: keys, Secrets: store,
	})
	if err != nil {
		return "", "", err
	}
	api, agents := bothHTTP(s.Handler(), nil), bothHTTP(s.AgentHandler(), authority.ServerTLS(nil, time.Now))
	background(e, s.Run)
	e.Defer(func() {
		api.Close()
		agents.Close()
		_ = s.Close()
	})
	return api.URL, agents.URL, nil
}

// bothHTTP serves HTTP/1 and HTTP/2, as the real ones do.
func bothHTTP(handler http.Handler, secure *tls.Config) *httptest.Server {
	srv := httptest.NewUnstartedServer(handler)
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetHTTP1(true)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	if secure != nil {
		srv.EnableHTTP2, srv.TLS = true, secure
		srv.StartTLS()
		return srv
	}
	srv.Start()
	return srv
}

// joinHost has a host join that runs nothing: host NAME ARCH MEMORY_MIB.
func joinHost(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: host NAME ARCH MEMORY_MIB")
	}
	memory, err := strconv.ParseInt(args[2], 10, 64)
	ts.Check(err)
	_, err = hostClient(ts, args[0]).Join(context.Background(), connect.NewRequest(&pinnacev1.JoinRequest{Host: &pinnacev1.HostFacts{
		Id: args[0], Name: args[0], Architecture: args[1], MemoryBytes: memory << 20, CpuMilli: 2000, DiskBytes: 64 << 30, Driver: "none",
	}}))
	ts.Check(err)
}

// hostClient speaks for a host, which it has join first unless it has.
func hostClient(ts *testscript.TestScript, id string) pinnacev1connect.AgentServiceClient {
	control := pinnacev1connect.NewControlServiceClient(httpClient(), ts.Getenv("PINNACE_SERVER"), connect.WithInterceptors(bearer(scriptToken)))
	role := agentRole{dirs: directories{data: ts.MkAbs(".hosts/" + id)}, servers: []string{ts.Getenv("AGENTS")}, log: slog.New(slog.DiscardHandler)}
	role.join = func(ctx context.Context) (string, error) {
		res, err := control.CreateJoinToken(ctx, connect.NewRequest(&pinnacev1.CreateJoinTokenRequest{Host: id}))
		if err != nil {
			return "", err
		}
		return res.Msg.Secret, nil
	}
	_, client, err := role.connect(context.Background(), id)
	ts.Check(err)
	return client
}

// background runs something until the script ends.
func background(e *testscript.Env, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	e.Defer(func() {
		cancel()
		<-done
	})
}

// pushImage makes an image of a folder and pushes it: image NAME:TAG DIR [ARCH...]. DIR/config.json is the
// "config" of the image config; DIR/rootfs has its files, executable unless they are below /etc. With several
// architectures it is an index.
func pushImage(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: image NAME:TAG DIR [ARCH...]")
	}
	dir := ts.MkAbs(args[1])
	architectures := args[2:]
	if len(architectures) == 0 {
		architectures = []string{"amd64"}
	}
	ref, err := name.ParseReference(ts.Getenv("REGISTRY") + "/" + args[0])
	ts.Check(err)
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	var only v1.Image
	for _, arch := range architectures {
		only, err = imageOf(dir, arch)
		ts.Check(err)
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: only, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	if len(architectures) > 1 {
		ts.Check(remote.WriteIndex(ref, index))
		return
	}
	ts.Check(remote.Write(ref, only))
}

func imageOf(dir, arch string) (v1.Image, error) {
	layer, err := layerOf(filepath.Join(dir, "rootfs"))
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1), layer)
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", arch
	process, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(process, &config.Config); err != nil {
		return nil, err
	}
	img, err = mutate.ConfigFile(img, config)
	return mutate.ConfigMediaType(img, types.OCIConfigJSON), err
}

func layerOf(root string) (v1.Layer, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		h := &tar.Header{Name: strings.TrimPrefix(path, root+"/"), Mode: 0o755, Typeflag: tar.TypeDir, Format: tar.FormatPAX}
		if d.IsDir() {
			return w.WriteHeader(h)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		h.Typeflag, h.Size = tar.TypeReg, int64(len(content))
		if strings.HasPrefix(h.Name, "etc/") {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		_, err = w.Write(content)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
}

// setFromFile keeps the output of the last command: setenv NAME stdout.
func setFromFile(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: setenv NAME FILE")
	}
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile(args[1])))
}

// removeLayers removes all layers from the registry.
func removeLayers(ts *testscript.TestScript, neg bool, args []string) {
	blobs(ts, neg, args, func(path string, content []byte) error {
		if !bytes.HasPrefix(content, []byte{0x1f, 0x8b}) {
			return nil
		}
		return os.RemoveAll(filepath.Dir(path))
	})
}

// changeIndexes makes every index in the registry another one under its old digest.
func changeIndexes(ts *testscript.TestScript, neg bool, args []string) {
	blobs(ts, neg, args, func(path string, content []byte) error {
		if !bytes.Contains(content, []byte(`"manifests"`)) {
			return nil
		}
		return os.WriteFile(path, append(content, ' '), 0o600)
	})
}

// blobs calls use with every blob of the registry.
func blobs(ts *testscript.TestScript, neg bool, args []string, use func(path string, content []byte) error) {
	if neg || len(args) != 0 {
		ts.Fatalf("it takes no arguments, and cannot fail")
	}
	root := filepath.Join(ts.MkAbs(".registry"), "docker/registry/v2/blobs")
	ts.Check(filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() != "data" {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return use(path, content)
	}))
}
