package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/vishvananda/netlink"

	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/redirect"
	"github.com/weft-mesh/weft/redirect/nstest"
)

// runtime stands for the container runtime: real network namespaces, listed.
type runtime struct {
	mu     sync.Mutex
	list   []Sandbox
	ending map[string]bool
	asked  int // whether a sandbox is ending
	listed int // times
	err    error
}

func (r *runtime) Ending(_ context.Context, id string) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked++
	return r.ending[id], r.err
}

// ends is what a runtime says of a sandbox while it lists it still.
func (r *runtime) ends(id string, ending bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ending = map[string]bool{id: ending}
}

func (r *runtime) questions() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked
}

func (r *runtime) Sandboxes(context.Context) ([]Sandbox, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.listed++
	return slices.Clone(r.list), r.err
}

func (r *runtime) listings() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.listed
}

func (r *runtime) set(err error, list ...Sandbox) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list, r.err = list, err
}

// healer is a running Repairs and what it told.
type healer struct {
	*Repairs
	t       *testing.T
	runtime *runtime
	look    chan struct{}
	mu      sync.Mutex
	told    []Repair
}

func newHealer(t *testing.T, list ...Sandbox) *healer {
	t.Helper()
	kit.Root(t)
	backend, err := redirect.Open(redirect.Auto)
	if err != nil {
		t.Fatal(err)
	}
	h := &healer{t: t, runtime: &runtime{list: list}, look: make(chan struct{}, 1)}
	h.Repairs = &Repairs{
		Sandboxes: h.runtime, Backend: backend, ExcludeNamespaces: []string{"kube-system"}, List: 20 * time.Millisecond, Verify: time.Hour,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Metrics: NewMetrics(prometheus.NewRegistry()),
		Told: func(r Repair) { h.mu.Lock(); defer h.mu.Unlock(); h.told = append(h.told, r) },
	}
	return h
}

func (h *healer) run() {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); h.Run(ctx, h.look) }()
	h.t.Cleanup(func() { stop(); <-done })
}

func (h *healer) repairs() []Repair {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.told)
}

// awaitRepairs waits until so many repairs were told.
func (h *healer) awaitRepairs(count int) []Repair {
	h.t.Helper()
	kit.Within(h.t, 20*time.Second, func() string {
		if got := len(h.repairs()); got < count {
			return fmt.Sprintf("%d repairs, want %d", got, count)
		}
		return ""
	})
	return h.repairs()
}

func pod(t *testing.T, name string, spec redirect.Spec) (Sandbox, *nstest.NS) {
	kit.Root(t)
	ns := nstest.New(t)
	return Sandbox{ID: "sandbox-" + name, Namespace: "shop", Name: name, UID: "uid-" + name, Redirect: spec.Encode(), NetNS: ns.Path}, ns
}

// value is a counter's or a gauge's.
func value(t testing.TB, m prometheus.Metric) float64 {
	t.Helper()
	var out dto.Metric
	if err := m.Write(&out); err != nil {
		t.Fatal(err)
	}
	return out.GetCounter().GetValue() + out.GetGauge().GetValue()
}

// differs says how the rules in a namespace differ from the Spec.
func differs(t testing.TB, ns *nstest.NS, spec redirect.Spec) []string {
	t.Helper()
	b, err := redirect.Open(redirect.Auto)
	if err != nil {
		t.Fatal(err)
	}
	var drift []string
	ns.Do(func() { drift, err = b.Verify(spec) })
	if err != nil {
		t.Fatal(err)
	}
	return drift
}

func TestPodsThatStartedBeforeThePluginAreRedirectedLive(t *testing.T) {
	const count = 50
	spec := redirect.Default()
	spec.ExcludeInboundPorts = []uint16{9000}
	var list []Sandbox
	var spaces []*nstest.NS
	for i := range count {
		s, ns := pod(t, fmt.Sprintf("job-%d", i), spec)
		list, spaces = append(list, s), append(spaces, ns)
	}
	h := newHealer(t, list...)
	start := time.Now()
	h.run()
	told := h.awaitRepairs(count)
	t.Logf("%d pods repaired in %s", count, time.Since(start))
	for i, ns := range spaces {
		if d := differs(t, ns, spec); len(d) > 0 {
			t.Errorf("pod %d: %q", i, d)
		}
	}
	for _, r := range told {
		if r.Err != nil || r.Reason != ReasonStart || len(r.Drift) == 0 || r.Namespace != "shop" {
			t.Errorf("told %+v", r)
		}
	}
	if got := value(t, h.Metrics.repairs.WithLabelValues(ReasonStart, "repaired")); got != count {
		t.Errorf("metric says %v repairs", got)
	}
}

func TestAPodThatIsRightIsNotTouched(t *testing.T) {
	right, ns := pod(t, "right", redirect.Default())
	ns.Do(func() {
		b, _ := redirect.Open(redirect.Auto)
		if err := b.Apply(redirect.Default()); err != nil {
			t.Error(err)
		}
	})
	excluded, bare := pod(t, "dns", redirect.Default())
	excluded.Namespace = "kube-system"
	wrong, _ := pod(t, "wrong", redirect.Default())
	h := newHealer(t, right, excluded, wrong)
	h.run()
	for _, r := range h.awaitRepairs(1) {
		if r.Name != "wrong" {
			t.Errorf("told %+v", r)
		}
	}
	nothing := redirect.Default()
	nothing.Mode = redirect.None
	if d := differs(t, bare, nothing); len(d) > 0 {
		t.Errorf("a pod of an excluded namespace got rules: %q", d)
	}
}

func TestRulesThatSomebodyFlushesComeBackAtOnce(t *testing.T) {
	s, ns := pod(t, "cart", redirect.Default())
	h := newHealer(t, s)
	h.run()
	h.awaitRepairs(1)
	for i := range 3 {
		remove(t, ns)
		start := time.Now()
		last := h.awaitRepairs(2 + i)[1+i]
		if last.Reason != ReasonDrift || last.Err != nil {
			t.Errorf("told %+v", last)
		}
		t.Logf("flushed rules were back after %s", time.Since(start))
	}
	if d := differs(t, ns, redirect.Default()); len(d) > 0 {
		t.Errorf("%q", d)
	}
}

// remove takes all rules away, as CNI DEL does.
func remove(t *testing.T, ns *nstest.NS) {
	t.Helper()
	b, err := redirect.Open(redirect.Auto)
	if err == nil {
		ns.Do(func() { err = b.Remove() })
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestRulesThatWentWithTheirPodAreNotRepairedNorTold(t *testing.T) {
	s, ns := pod(t, "job", redirect.Default())
	h := newHealer(t, s)
	h.run()
	h.awaitRepairs(1)
	h.runtime.ends(s.ID, true)
	asked := h.runtime.questions()
	remove(t, ns)
	kit.Within(t, 30*time.Second, func() string { // it saw what DEL did, and saw it again in later passes
		if n := h.runtime.questions() - asked; n < 3 {
			return fmt.Sprintf("it asked the runtime %d times", n)
		}
		return ""
	})
	nothing := redirect.Default()
	nothing.Mode = redirect.None
	if d := differs(t, ns, nothing); len(d) > 0 {
		t.Errorf("the ending pod got rules: %q", d)
	}
	if told := h.repairs(); len(told) != 1 {
		t.Errorf("told %+v", told[1:])
	}
	// What only looked like an end (all containers were between two lives) is repaired as soon as that is known.
	h.runtime.ends(s.ID, false)
	if r := h.awaitRepairs(2)[1]; r.Reason != ReasonDrift || r.Err != nil {
		t.Errorf("told %+v", r)
	}
}

func TestANamespaceThatTookAnEndedPodsPathIsNotTouched(t *testing.T) {
	s, own := pod(t, "cart", redirect.Default())
	_, stranger := pod(t, "stranger", redirect.Default())
	path := filepath.Join(t.TempDir(), "netns")
	if err := os.Symlink(own.Path, path); err != nil {
		t.Fatal(err)
	}
	s.NetNS = path
	h := newHealer(t, s)
	h.run()
	h.awaitRepairs(1)
	if err := os.Symlink(stranger.Path, path+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	remove(t, own)
	h.awaitRepairs(2)
	if d := differs(t, own, redirect.Default()); len(d) > 0 {
		t.Errorf("the pod's own namespace: %q", d)
	}
	nothing := redirect.Default()
	nothing.Mode = redirect.None
	if d := differs(t, stranger, nothing); len(d) > 0 {
		t.Errorf("a stranger's namespace got the pod's rules: %q", d)
	}
}

func TestDriftIsFoundWithoutNetlinksHelp(t *testing.T) {
	spec := redirect.Default()
	spec.Mode = redirect.TProxy
	s, ns := pod(t, "cart", spec)
	h := newHealer(t, s)
	h.Verify = 50 * time.Millisecond
	h.run()
	h.awaitRepairs(1)
	// A routing rule is no rule of nftables, so nothing is heard of it.
	ns.Do(func() {
		rules, err := netlink.RuleList(netlink.FAMILY_V4)
		for _, r := range rules {
			if r.Mark != 0 && err == nil {
				err = netlink.RuleDel(&r)
			}
		}
		if err != nil {
			t.Error(err)
		}
	})
	if r := h.awaitRepairs(2)[1]; r.Reason != ReasonDrift || r.Err != nil {
		t.Errorf("told %+v", r)
	}
}

func TestWhatCannotBeRepairedIsSaidOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	forged, _ := pod(t, "forged", redirect.Default())
	forged.Redirect = `{"mode":"MAGIC"}`
	unmounted := Sandbox{ID: "u", Namespace: "shop", Name: "unmounted", Redirect: redirect.Default().Encode(), NetNS: file}
	ended := Sandbox{ID: "e", Namespace: "shop", Name: "ended", Redirect: redirect.Default().Encode(), NetNS: file + "-gone"}
	h := newHealer(t, forged, unmounted, ended)
	h.runtime.ends("e", true)
	h.run()
	told := h.awaitRepairs(2)
	kit.Within(t, 20*time.Second, func() string { // a second attempt
		if value(t, h.Metrics.repairs.WithLabelValues(ReasonStart, "failed")) < 4 {
			return "no second attempt"
		}
		return ""
	})
	for name, want := range map[string]string{"forged": "MAGIC", "unmounted": "HostToContainer"} {
		i := slices.IndexFunc(told, func(r Repair) bool { return r.Name == name })
		if i < 0 || told[i].Err == nil || !strings.Contains(told[i].Err.Error(), want) {
			t.Errorf("%s: told %+v", name, told)
		}
	}
	for name, want := range map[string]int{"forged": 1, "unmounted": 1, "ended": 0} {
		n := 0
		for _, r := range h.repairs() {
			if r.Name == name {
				n++
			}
		}
		if n != want {
			t.Errorf("%s was told %d times, want %d", name, n, want)
		}
	}
}

func TestAnAgentThatCannotAskTheRuntimeLooksAfterThePodsItKnows(t *testing.T) {
	s, ns := pod(t, "cart", redirect.Default())
	h := newHealer(t, s)
	h.run()
	h.awaitRepairs(1)
	h.runtime.set(errors.New("connection refused"))
	kit.Within(t, 20*time.Second, func() string {
		if value(t, h.Metrics.listErrs) == 0 {
			return "the runtime was not asked"
		}
		return ""
	})
	remove(t, ns)
	h.awaitRepairs(2)
	// The runtime is back, the pod gone: its namespace is let go.
	h.runtime.set(nil)
	kit.Within(t, 20*time.Second, func() string {
		if got := value(t, h.Metrics.sandboxes); got != 0 {
			return fmt.Sprintf("%v sandboxes", got)
		}
		return ""
	})
}

func TestManyEventsAreOneLookAndTheLastIsNotLost(t *testing.T) {
	h := newHealer(t)
	h.List = time.Hour
	began := time.Now()
	h.run()
	for range 1000 {
		h.look <- struct{}{} // has room for one: each was taken before the next
	}
	s, ns := pod(t, "late", redirect.Default())
	h.runtime.set(nil, s)
	h.look <- struct{}{}
	h.awaitRepairs(1)
	if drift := differs(t, ns, redirect.Default()); len(drift) > 0 {
		t.Errorf("the pod that the last event told of is not redirected: %q", drift)
	}
	// The first look, one for each rest, and one for the last event.
	if most, got := 2+int(time.Since(began)/rest), h.runtime.listings(); got > most {
		t.Errorf("the runtime listed its sandboxes %d times, want at most %d", got, most)
	}
}
