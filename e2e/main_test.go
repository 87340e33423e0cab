package e2e

import (
	"context"
	"fmt"
	"hash/fnv"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-mesh/weft/e2e/kit"
)

// Two checkouts may test at the same time: the sandbox is named after its own.
var sandboxName = func() string {
	dir, _ := os.Getwd() // empty at worst: the name is then shared
	h := fnv.New32a()
	h.Write([]byte(dir))
	return fmt.Sprintf("e2e-%08x", h.Sum32())
}()

var sandboxNode = Node{StateDir: "/run/weft/sandbox/" + sandboxName}

var shared struct {
	sync.Once
	cluster *Cluster
	err     error
	down    func()
}

// onCluster returns the cluster all scenarios share: the one of WEFT_E2E_KUBECTL, else a
// sandbox that is brought up by the first scenario that needs it.
func onCluster(t *testing.T) *Cluster {
	t.Helper()
	if kubectl := os.Getenv("WEFT_E2E_KUBECTL"); kubectl != "" {
		return &Cluster{Kubectl: strings.Fields(kubectl)}
	}
	kit.Root(t)
	shared.Do(func() { shared.cluster, shared.down, shared.err = upSandbox(t, sandboxName) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.cluster
}

// onSandbox is onCluster for scenarios that look behind the API: at processes and kernel rules.
func onSandbox(t *testing.T) *Cluster {
	t.Helper()
	if os.Getenv("WEFT_E2E_KUBECTL") != "" {
		t.Skip("looks at this machine's processes and kernel rules: sandbox only")
	}
	return onCluster(t)
}

func upSandbox(t *testing.T, name string, flags ...string) (*Cluster, func(), error) {
	for _, program := range []string{"weftd", "weft-cni", "testapp"} {
		kit.Program(t, program)
	}
	kit.CNIPlugins(t)
	t.Setenv("ENVOY", kit.Envoy(t))
	samples := exec.Command("make", "bin/samples")
	samples.Dir = kit.RepoRoot(t)
	if out, err := samples.CombinedOutput(); err != nil {
		return nil, nil, fmt.Errorf("building the samples: %w: %s", err, out)
	}
	cluster := &Cluster{Kubectl: []string{kit.Program(t, "weft"), "sandbox", "--name", name}}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	down := func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := cluster.Run(ctx, "", "down"); err != nil {
			fmt.Fprintln(os.Stderr, "sandbox down:", err)
		}
	}
	down() // what a killed run left behind
	out, err := cluster.Run(ctx, "", append([]string{"up"}, flags...)...)
	if err != nil {
		down()
		return nil, nil, fmt.Errorf("sandbox up: %w\n%s", err, out)
	}
	return cluster, down, nil
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.down != nil {
		shared.down()
	}
	os.Exit(code)
}

// sample reads a file of samples/bookinfo.
func sample(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(kit.RepoRoot(t), "samples", "bookinfo", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// meshed and outside are the two namespaces most scenarios have: one with sidecars, one without.
func meshed(t *testing.T) *Namespace {
	t.Helper()
	return NewNamespace(t, onCluster(t), "", "istio-injection=enabled")
}

func outside(t *testing.T) *Namespace {
	t.Helper()
	return NewNamespace(t, onCluster(t), "outside")
}

// client is the deployment requests are made from.
var client = App{Name: "client", Hold: true}

const fromClient = "client-v1"

// host is the FQDN of a service of the namespace.
func (ns *Namespace) host(service string) string {
	return service + "." + ns.Name + ".svc.cluster.local"
}

// between fails unless low <= n <= high. Bounds on random splits are four standard deviations wide.
func between(t *testing.T, what string, n, low, high int) {
	t.Helper()
	if n < low || n > high {
		t.Errorf("%s: %d, want %d to %d", what, n, low, high)
	}
}

// subsets is a DestinationRule with one subset for each version, and further lines of spec.
func subsets(host string, versions []string, spec ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: %s}\nspec:\n  host: %s\n", host, host)
	for _, s := range spec {
		b.WriteString(s)
	}
	if len(versions) > 0 {
		b.WriteString("  subsets:\n")
	}
	for _, v := range versions {
		fmt.Fprintf(&b, "  - {name: %s, labels: {version: %s}}\n", v, v)
	}
	return b.String()
}

// virtualService wraps the http section of a VirtualService for one host.
func virtualService(host, http string) string {
	return fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: %s}\nspec:\n  hosts: [%s]\n  http:\n%s", host, host, http)
}
