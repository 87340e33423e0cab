package install

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/e2e/kubernetes"
)

// The first Ctrl-C lets Helm finish the release that it writes. When the API server does not answer any more that takes for ever, and the
// second one ends the program.
func TestASecondCtrlCEndsAnInstallThatHangs(t *testing.T) {
	api := kubernetes.StartAPIServer(t)
	server, err := url.Parse(kubernetes.Host)
	if err != nil {
		t.Fatal(err)
	}
	transport, err := rest.TransportFor(api.Config())
	if err != nil {
		t.Fatal(err)
	}
	through := httputil.NewSingleHostReverseProxy(server)
	through.Transport = transport
	hangs := make(chan struct{})
	var once sync.Once
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/secrets") { // where Helm keeps releases
			once.Do(func() { close(hangs) })
			<-t.Context().Done()
			return
		}
		through.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf("{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: %q}}], contexts: [{name: c, context: {cluster: c}}]}", front.URL)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}

	says := &kit.Output{}
	weft := exec.Command(kit.Program(t, "weft"), "install", "-y", "--kubeconfig", kubeconfig)
	weft.Stdout, weft.Stderr = says, says
	if err := kit.Start(weft); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { weft.Wait(); close(ended) }()
	t.Cleanup(func() { weft.Process.Kill(); <-ended })
	within := func(what string, done <-chan struct{}) {
		t.Helper()
		select {
		case <-done:
		case <-time.After(time.Minute):
			t.Fatalf("%s: not within a minute; it said:\n%s", what, says)
		}
	}

	within("Helm writes a release", hangs)
	weft.Process.Signal(os.Interrupt)
	for deadline := time.Now().Add(time.Minute); !strings.Contains(says.String(), "a second Ctrl-C"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the first Ctrl-C is not answered; it said:\n%s", says)
		}
	}
	select {
	case <-ended:
		t.Fatalf("the first Ctrl-C did not let Helm finish; it said:\n%s", says)
	default:
	}
	weft.Process.Signal(os.Interrupt)
	within("the second Ctrl-C", ended)
	if status := weft.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != syscall.SIGINT {
		t.Errorf("it ended with %v, not of the signal", weft.ProcessState)
	}
}
