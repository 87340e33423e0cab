package kubernetes

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/weft-mesh/weft/e2e/kit"
)

// Version is the Kubernetes whose API server tests run.
const Version = "1.36.3"

const (
	// Host is where the API server listens, in the test's own network namespace.
	Host = "https://127.0.0.1:6443"
	// Issuer of service account tokens.
	Issuer = "https://kubernetes.default.svc.cluster.local"

	adminToken = "admin"
	etcdURL    = "http://127.0.0.1:2379"
	patience   = 60 * time.Second
)

// APIServer is a running kube-apiserver with its etcd.
type APIServer struct {
	t    testing.TB
	bin  string
	dir  string
	etcd *process
	api  *process
}

// Programs returns the directory of the Kubernetes programs ($KUBERNETES_BIN, else
// bin/kubernetes/VERSION), and skips the test when they are not there.
func Programs(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("KUBERNETES_BIN")
	if dir == "" {
		dir = filepath.Join(kit.RepoRoot(t), "bin", "kubernetes", Version)
	}
	for _, p := range []string{"kube-apiserver", "etcd"} {
		if _, err := os.Stat(filepath.Join(dir, p)); err != nil {
			t.Skip("needs a real API server, which takes minutes to compile: make kubernetes")
		}
	}
	return dir
}

// StartAPIServer starts an empty cluster of API objects: no controllers, no nodes. It ends with the test.
// The package's TestMain must be kit.PrivateNetwork, since ports are fixed.
func StartAPIServer(t testing.TB) *APIServer {
	t.Helper()
	kit.Root(t)
	a := &APIServer{t: t, bin: Programs(t), dir: t.TempDir()}
	if err := writeTokenKey(a.path("sa.key")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a.path("tokens.csv"), []byte(adminToken+`,admin,1,"system:masters"`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.etcd = start(t, filepath.Join(a.bin, "etcd"), "--data-dir", a.path("etcd"), "--listen-client-urls", etcdURL, "--advertise-client-urls", etcdURL,
		"--listen-peer-urls", "http://127.0.0.1:2380", "--unsafe-no-fsync", "--logger", "zap", "--log-level", "warn")
	t.Cleanup(func() { a.etcd.kill() })
	a.Start()
	t.Cleanup(a.Kill)
	return a
}

func (a *APIServer) path(name string) string { return filepath.Join(a.dir, name) }

// Start starts the API server again after Kill, and waits until it is ready.
func (a *APIServer) Start() {
	a.t.Helper()
	began := time.Now()
	a.api = start(a.t, filepath.Join(a.bin, "kube-apiserver"), "--etcd-servers="+etcdURL, "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port=6443",
		"--endpoint-reconciler-type=none", // a loopback address is none that pods could use
		"--cert-dir="+a.path("pki"), "--token-auth-file="+a.path("tokens.csv"), "--authorization-mode=Node,RBAC",
		"--service-cluster-ip-range=10.96.0.0/16", "--service-account-issuer="+Issuer,
		"--service-account-key-file="+a.path("sa.key"), "--service-account-signing-key-file="+a.path("sa.key"),
		"--disable-admission-plugins=ServiceAccount", // the tests make the accounts that they need
		"--allow-privileged", "--profiling=false")
	for {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		ready := a.ready(ctx)
		cancel()
		if ready {
			break
		}
		select {
		case <-a.api.done:
			a.t.Fatalf("kube-apiserver exited:\n%s", a.api.tail())
		case <-time.After(50 * time.Millisecond):
		}
		if time.Since(began) > patience {
			a.t.Fatalf("kube-apiserver is not ready after %s:\n%s", patience, a.api.tail())
		}
	}
	a.t.Logf("kube-apiserver is ready after %s", time.Since(began).Round(time.Millisecond))
}

func (a *APIServer) ready(ctx context.Context) bool {
	if _, err := os.Stat(a.path("pki/apiserver.crt")); err != nil {
		return false // it makes its certificate first
	}
	h, err := rest.HTTPClientFor(a.Config())
	if err != nil {
		return false
	}
	defer h.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, Host+"/readyz", nil)
	if err != nil {
		return false
	}
	answer, err := h.Do(request)
	if err != nil {
		return false
	}
	defer answer.Body.Close()
	return answer.StatusCode == http.StatusOK
}

// Kill ends the API server at once, as a crash would. etcd goes on.
func (a *APIServer) Kill() { a.api.kill() }

// Config is that of an administrator.
func (a *APIServer) Config() *rest.Config { return a.ConfigFor(adminToken) }

// ConfigFor is that of the bearer of a token.
func (a *APIServer) ConfigFor(token string) *rest.Config {
	return &rest.Config{Host: Host, BearerToken: token, QPS: -1, TLSClientConfig: rest.TLSClientConfig{CAFile: a.path("pki/apiserver.crt")}}
}

// Kubeconfig writes a file for the bearer of a token and returns its path.
func (a *APIServer) Kubeconfig(token string) string {
	a.t.Helper()
	f, err := os.CreateTemp(a.dir, "kubeconfig")
	if err != nil {
		a.t.Fatal(err)
	}
	fmt.Fprintf(f, `apiVersion: v1
kind: Config
current-context: c
clusters: [{name: c, cluster: {server: %q, certificate-authority: %q}}]
users: [{name: u, user: {token: %q}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
`, Host, a.path("pki/apiserver.crt"), token)
	if err := f.Close(); err != nil {
		a.t.Fatal(err)
	}
	return f.Name()
}

// writeTokenKey makes the key that tokens are signed with, in SEC1: the API server refuses PKCS#8.
func writeTokenKey(path string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

// process is a running program.
type process struct {
	cmd  *exec.Cmd
	log  bytes.Buffer
	done chan struct{}
}

func start(t testing.TB, program string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(program, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	if err := kit.Start(p.cmd); err != nil {
		t.Fatal(err)
	}
	go func() { p.cmd.Wait(); close(p.done) }()
	return p
}

func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// tail is the end of what the process wrote; it must have ended.
func (p *process) tail() string {
	p.kill()
	b := p.log.Bytes()
	return string(b[max(0, len(b)-4000):])
}
