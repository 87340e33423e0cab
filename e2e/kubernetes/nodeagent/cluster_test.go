package nodeagent

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/weft-mesh/weft/deploy/images"
	"github.com/weft-mesh/weft/e2e/kit"
)

const (
	system      = "istio-system"
	proberImage = "docker.io/weftmesh/prober:dev"
	agentTag    = "nodeagent" // of the agent's image, made of this checkout
	patience    = 90 * time.Second
)

// cluster is the node under test, seen by an administrator.
type cluster struct {
	node
	t      *testing.T
	api    *kubernetes.Clientset
	config *rest.Config
	target string // of apps: a listener that is not in the mesh
}

// once is what all tests of a run share; they run one after the other.
var once struct {
	opened   bool
	original map[string]string // the node's network configuration before the first test
	chart    []byte            // the agent's objects, left in the API server between tests
}

// connect reaches the node as an administrator, and changes nothing.
func connect(t *testing.T) *cluster {
	t.Helper()
	if os.Getenv(directory) == "" {
		t.Skip("needs a real node: `go run ./e2e/kubernetes/cluster up --name n --dir DIR`, then " + directory + "=DIR; `make e2e` does both")
	}
	kit.Root(t)
	n, err := readNode()
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{node: n, t: t}
	if c.config, err = clientcmd.BuildConfigFromFlags("", filepath.Join(n.Dir, "kubeconfig")); err != nil {
		t.Fatal(err)
	}
	c.config.QPS = -1
	if c.api, err = kubernetes.NewForConfig(c.config); err != nil {
		t.Fatal(err)
	}
	return c
}

// open gives the node as it was before the first test: no agent, its own network configuration.
func open(t *testing.T) *cluster {
	t.Helper()
	c := connect(t)
	c.target = listenOutside(t, net.JoinHostPort(c.NodeIP, "0"))
	if !once.opened {
		c.firstTime()
		once.opened = true
	}
	t.Cleanup(func() {
		if t.Failed() {
			c.explain()
		}
		c.reset()
		c.restore()
	})
	return c
}

// firstTime brings the images and the namespace, and takes away what an interrupted run left.
func (c *cluster) firstTime() {
	c.t.Helper()
	c.loadProber()
	c.load(images.Spec{Ref: "docker.io/weftmesh/weft:" + agentTag, Files: []images.File{
		{Path: "/weft-node", From: kit.Program(c.t, "weft-node")}, {Path: "/weft-cni", From: kit.Program(c.t, "weft-cni")},
	}})
	_, err := c.api.CoreV1().Namespaces().Create(context.Background(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: system}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		c.t.Fatal(err)
	}
	c.reset()
	once.original = c.conf()
}

// load makes an image for the node's runtime.
func (c *cluster) load(s images.Spec) {
	c.t.Helper()
	tar := filepath.Join(c.t.TempDir(), "image.tar")
	s.Platform = v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
	for i := range s.Files {
		s.Files[i].Mode = 0o755
	}
	if err := images.WriteArchive(tar, s); err != nil {
		c.t.Fatal(err)
	}
	c.command(filepath.Join(c.Dir, "ctr"), "images", "import", tar)
}

// loadProber builds the app's image.
func (c *cluster) loadProber() {
	c.t.Helper()
	path := filepath.Join(c.t.TempDir(), "prober")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "./prober")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("%v\n%s", err, out)
	}
	c.load(images.Spec{Ref: proberImage, Entrypoint: []string{"/prober"}, Files: []images.File{{Path: "/prober", From: path}}})
}

// command runs a program that must succeed and gives what it wrote.
func (c *cluster) command(program string, args ...string) string {
	c.t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		c.t.Fatalf("%s %s: %v\n%s", filepath.Base(program), strings.Join(args, " "), err, out)
	}
	return string(out)
}

// apply gives manifests to the API server as an administrator would.
func (c *cluster) apply(manifests []byte) {
	c.t.Helper()
	cmd := exec.Command(filepath.Join(c.Dir, "kubectl"), "apply", "--server-side", "--force-conflicts", "-f", "-")
	cmd.Stdin = bytes.NewReader(manifests)
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("kubectl apply: %v\n%s", err, out)
	}
}

// within waits for a condition, and gives the time that it took.
func (c *cluster) within(limit time.Duration, problem func() string) time.Duration {
	c.t.Helper()
	return kit.Within(c.t, limit, problem)
}

// conf is the runtime's directory of network configurations: name to content.
func (c *cluster) conf() map[string]string {
	c.t.Helper()
	entries, err := os.ReadDir(c.ConfDir)
	if err != nil {
		c.t.Fatal(err)
	}
	out := map[string]string{}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		text, err := os.ReadFile(filepath.Join(c.ConfDir, e.Name()))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			c.t.Fatal(err)
		}
		out[e.Name()] = string(text)
	}
	return out
}

// write puts a configuration in place in one step, as network plugins should.
func (c *cluster) write(name, text string) {
	c.t.Helper()
	temporary := filepath.Join(c.ConfDir, name+".new") // no runtime reads this name
	if err := os.WriteFile(temporary, []byte(text), 0o644); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Rename(temporary, filepath.Join(c.ConfDir, name)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) remove(name string) {
	c.t.Helper()
	if err := os.Remove(filepath.Join(c.ConfDir, name)); err != nil {
		c.t.Fatal(err)
	}
}

// only makes these the node's network configurations, never being without one.
func (c *cluster) only(files map[string]string) {
	c.t.Helper()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		c.write(name, files[name])
	}
	for name := range c.conf() {
		if _, stays := files[name]; !stays {
			c.remove(name)
		}
	}
}

// restore gives the node its own network back.
func (c *cluster) restore() {
	c.t.Helper()
	if have := c.conf(); !maps.Equal(have, once.original) {
		c.only(once.original)
	}
}

// chained waits until the file ends with our entry.
func (c *cluster) chained(name string) time.Duration {
	c.t.Helper()
	return c.within(patience, func() string {
		text := c.conf()[name]
		if strings.Count(text, `"type":"weft-cni"`) != 1 || strings.Index(text, `"type":"weft-cni"`) < strings.LastIndex(text, `"type":"portmap"`) {
			return fmt.Sprintf("%s: weft-cni is not its last plugin: %s", name, text)
		}
		return ""
	})
}

// explain prints what a person would look at.
func (c *cluster) explain() {
	pod := c.agentPod()
	if pod != nil {
		c.t.Logf("weft-node's log:\n%s", c.logs(pod.Namespace, pod.Name, nil))
	}
	for name, text := range c.conf() {
		c.t.Logf("%s: %s", name, text)
	}
	events, err := c.api.CoreV1().Events("").List(context.Background(), metav1.ListOptions{})
	if err != nil {
		return
	}
	for _, e := range events.Items[max(0, len(events.Items)-40):] {
		c.t.Logf("event %s %s %s/%s: %s", e.Type, e.Reason, e.InvolvedObject.Namespace, e.InvolvedObject.Name, e.Message)
	}
}

// get asks one of the agent's pages.
func (c *cluster) get(page string) (status int, body string) {
	pod := c.agentPod()
	if pod == nil || pod.Status.PodIP == "" {
		return 0, "the agent has no address"
	}
	h := http.Client{Timeout: 2 * time.Second}
	r, err := h.Get("http://" + net.JoinHostPort(pod.Status.PodIP, "15014") + page)
	if err != nil {
		return 0, err.Error()
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		return 0, err.Error()
	}
	return r.StatusCode, string(text)
}

// metric is the value of one line of the agent's metrics, "" when there is none.
func (c *cluster) metric(name string) string {
	_, body := c.get("/metrics")
	for line := range strings.SplitSeq(body, "\n") {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return value
		}
	}
	return ""
}
