package e2e

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/mesh"
)

// Two checkouts may test at the same time: the sandbox is named after its own.
var sandboxName = func() string {
	dir, _ := os.Getwd() // empty at worst: the name is then shared
	h := fnv.New32a()
	h.Write([]byte(dir))
	return fmt.Sprintf("e2e-%08x", h.Sum32())
}()

// run tells apart the namespaces of runs that follow one another on one cluster.
var run = strconv.FormatInt(time.Now().Unix()%(36*36*36*36), 36)

var shared struct {
	sync.Once
	cluster *Cluster
	err     error
}

// atEnd is done when all scenarios are over, last first.
var atEnd struct {
	sync.Mutex
	steps []func(context.Context) error
}

func deferToEnd(step func(context.Context) error) {
	atEnd.Lock()
	defer atEnd.Unlock()
	atEnd.steps = append(atEnd.steps, step)
}

// onCluster returns the cluster all scenarios share: the one of WEFT_E2E_KUBECTL, else a
// sandbox that is brought up by the first scenario that needs it.
func onCluster(t *testing.T) *Cluster {
	t.Helper()
	if kubectl := os.Getenv("WEFT_E2E_KUBECTL"); kubectl != "" {
		return OnKubernetes(kubectl)
	}
	kit.Root(t)
	shared.Do(func() {
		shared.err = errors.New("the sandbox could not be built") // unless building ends the test
		cluster, down, err := upSandbox(t, sandboxName, "--set", "defaultConfig.proxyMetadata."+mesh.DiscoveryVariable+"="+string(meshDiscovery(t)))
		if shared.cluster, shared.err = cluster, err; err == nil {
			deferToEnd(down)
		}
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.cluster
}

// onSandbox is onCluster for scenarios that break the node in ways that its own tests cover on Kubernetes.
func onSandbox(t *testing.T, why string) *Cluster {
	t.Helper()
	if os.Getenv("WEFT_E2E_KUBECTL") != "" {
		t.Skip("sandbox only: " + why)
	}
	return onCluster(t)
}

// onKubernetes is onCluster for scenarios that are about what the sandbox only plays.
func onKubernetes(t *testing.T, why string) *Cluster {
	t.Helper()
	if os.Getenv("WEFT_E2E_KUBECTL") == "" {
		t.Skip("Kubernetes only (WEFT_E2E_KUBECTL): " + why)
	}
	return onCluster(t)
}

func upSandbox(t *testing.T, name string, flags ...string) (*Cluster, func(context.Context) error, error) {
	for _, program := range []string{"weftd", "weft-cni", "testapp"} {
		kit.Program(t, program)
	}
	kit.CNIPlugins(t)
	samples := exec.Command("make", "bin/samples")
	samples.Dir = kit.RepoRoot(t)
	if out, err := samples.CombinedOutput(); err != nil {
		return nil, nil, fmt.Errorf("building the samples: %w: %s", err, out)
	}
	cluster := OnSandbox(kit.Program(t, "weft"), name)
	cluster.Env = []string{"ENVOY=" + kit.Envoy(t)}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	down := func(ctx context.Context) error {
		_, err := cluster.Run(ctx, "", "down")
		return err
	}
	// What a killed run left behind; there is nothing to say when there is nothing.
	_ = down(ctx)
	out, err := cluster.Run(ctx, "", append([]string{"up"}, flags...)...)
	if err != nil {
		return nil, nil, fmt.Errorf("sandbox up: %w", errors.Join(err, errors.New(out), down(ctx)))
	}
	return cluster, down, nil
}

func TestMain(m *testing.M) {
	code := m.Run()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for _, step := range slices.Backward(atEnd.steps) {
		if err := step(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "cleaning up:", err)
			code = max(code, 1)
		}
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

// meshed is a namespace with sidecars, under Pod Security's strictest profile. The scenario
// runs beside others; what it changes must end at its namespace.
func meshed(t *testing.T) *Namespace {
	t.Helper()
	t.Parallel()
	return alone(t)
}

// alone is meshed for a scenario that changes the whole mesh, or breaks a part of it: nothing else runs meanwhile.
func alone(t *testing.T) *Namespace {
	t.Helper()
	return NewNamespace(t, onCluster(t), "", meshLabels(t)...)
}

// meshLabels are those of a namespace with sidecars, for a test.
func meshLabels(t *testing.T) []string {
	labels := []string{injected, restricted}
	if d := discoveryOf(t); d != meshDiscovery(t) {
		labels = append(labels, withDiscovery(d))
	}
	return labels
}

const (
	injected   = "istio-injection=enabled"
	restricted = "pod-security.kubernetes.io/enforce=restricted"
)

// fixture is a namespace that scenarios share, made by the first.
type fixture struct {
	sync.Once
	ns     *Namespace
	failed error
}

// of returns the fixture's namespace for a test: its messages and failures are the test's.
func (f *fixture) of(t *testing.T, name string, labels []string, apps ...App) *Namespace {
	t.Helper()
	f.Do(func() {
		f.failed = errors.New("the scenario that deployed it first failed")
		ns := namespaceUntilEnd(t, onCluster(t), name, labels...)
		ns.Deploy(apps...)
		f.ns, f.failed = ns, nil
	})
	if f.failed != nil {
		t.Fatalf("namespace %s: %v", name, f.failed)
	}
	return &Namespace{T: t, Cluster: f.ns.Cluster, Name: f.ns.Name}
}

var outsider fixture

// outside is a namespace without sidecars. A client runs there.
func outside(t *testing.T) *Namespace {
	t.Helper()
	return outsider.of(t, "outside", []string{restricted}, client)
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
