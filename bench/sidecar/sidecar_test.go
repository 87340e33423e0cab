// Package sidecar measures what a pod's owner waits for: an injected pod in a sandbox, from `apply` to Ready, with the
// real webhook, CNI chain, Envoy and control plane.
//
//	go test -run '^$' -bench . ./bench/sidecar
package sidecar

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/sandbox"
	"github.com/weft-mesh/weft/sandbox/store"
)

// goal is how long the sidecar may take from the start of its process until it is proven to carry the pod's traffic,
// at the median of an otherwise idle machine.
const goal = 150 * time.Millisecond

// times of one pod, since it was applied.
type times struct {
	running time.Duration // Envoy's process runs
	started time.Duration // its startup probe, the redirect proof, has passed
	app     time.Duration // the app's process runs
	ready   time.Duration
	cpu     time.Duration // processor time of Envoy until then, all threads
	queued  time.Duration // how long Envoy's main thread was runnable and had to wait for a processor
}

// bench is a sandbox with a mesh.
type bench struct {
	b      *testing.B
	weft   string
	state  string
	dir    sandbox.Dir
	client *sandbox.Client
}

// up brings a sandbox up, and takes it down at the end.
func up(b *testing.B) *bench {
	b.Helper()
	kit.Root(b)
	kit.Envoy(b)
	kit.CNIPlugins(b)
	for _, name := range []string{"weftd", "weft-cni", "testapp"} {
		kit.Program(b, name)
	}
	s := &bench{b: b, weft: kit.Program(b, "weft"), state: b.TempDir()}
	s.run("", "up")
	b.Cleanup(func() { s.run("", "down") })
	dir, err := sandbox.Open(s.state, "bench")
	if err != nil {
		b.Fatal(err)
	}
	s.dir, s.client = dir, sandbox.NewClient(dir)
	return s
}

// run runs a verb of the sandbox and returns what it printed.
func (s *bench) run(stdin string, args ...string) string {
	s.b.Helper()
	cmd := exec.Command(s.weft, append([]string{"sandbox", "--state-dir", s.state, "--name", "bench"}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Dir = filepath.Dir(s.weft)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		s.b.Fatalf("weft sandbox %s: %v\n%s%s", strings.Join(args, " "), err, out, errs.String())
	}
	return string(out)
}

func BenchmarkInjectedPodStartsUntilReady(b *testing.B) {
	s := up(b)
	run, dir, client := s.run, s.dir, s.client
	run("", "label", "namespace", "default", "istio-injection=enabled")

	var all []times
	one := func(i int) times {
		name := fmt.Sprintf("pod-%d", i)
		t, err := follow(b.Context(), client, dir, "default", name, func() {
			run(fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: %s, labels: {app: web}},
				spec: {containers: [{name: app, image: "docker.io/weftmesh/testapp:1"}]}}`, name), "apply", "-f", "-")
		})
		if err != nil {
			b.Fatal(err)
		}
		run("", "delete", "pod", name, "--grace-period=0", "--force")
		return t
	}
	one(0) // files into the page cache
	for i := 1; b.Loop(); i++ {
		all = append(all, one(i))
	}
	report := func(name string, of func(times) time.Duration) time.Duration {
		var sorted []time.Duration
		for _, t := range all {
			sorted = append(sorted, of(t))
		}
		slices.Sort(sorted)
		p50, p95 := sorted[len(sorted)/2], sorted[len(sorted)*95/100]
		b.Logf("%s: longest %v", name, sorted[len(sorted)-1])
		b.ReportMetric(float64(p50.Microseconds())/1000, name+"-p50-ms")
		b.ReportMetric(float64(p95.Microseconds())/1000, name+"-p95-ms")
		return p50
	}
	b.ReportMetric(0, "ns/op") // includes the deletion, which nobody waits for
	report("pod-ready", func(t times) time.Duration { return t.ready })
	report("app-after-sidecar", func(t times) time.Duration { return t.app - t.started })
	report("sidecar-cpu", func(t times) time.Duration { return t.cpu })
	report("sidecar-queued", func(t times) time.Duration { return t.queued })
	p50 := report("sidecar-ready", func(t times) time.Duration { return t.started - t.running })
	if len(all) >= 5 && p50 > goal {
		b.Logf("sidecar ready after %v at the median; the goal on an idle machine is %v", p50, goal)
	}
}

var errDone = errors.New("done")

// follow applies a pod and notes when each step is seen.
func follow(ctx context.Context, c *sandbox.Client, dir sandbox.Dir, namespace, name string, apply func()) (t times, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	kind, ok := store.Resource("pods")
	if !ok {
		return t, errors.New("the sandbox knows no pods")
	}
	// Applying takes a process of the CLI; the clock runs from when the object exists.
	go apply()
	var begin time.Time
	note := func(d *time.Duration, seen bool) {
		if seen && *d == 0 {
			*d = time.Since(begin)
		}
	}
	var last *corev1.Pod
	err = c.Watch(ctx, sandbox.Query{Kind: kind, Namespace: namespace}, func(e store.EventType, o store.Object) error {
		pod, ok := o.(*corev1.Pod)
		if !ok || pod.Name != name || e == store.Deleted {
			return nil
		}
		if begin.IsZero() {
			begin = time.Now()
		}
		last = pod
		for _, s := range pod.Status.InitContainerStatuses {
			if s.Name == "istio-proxy" {
				note(&t.running, s.State.Running != nil)
				if t.started == 0 && s.Started != nil && *s.Started {
					note(&t.started, true)
					if t.cpu, t.queued, err = processor(filepath.Join(dir.Pods(), "netns", string(pod.UID))); err != nil {
						return err
					}
				}
			}
		}
		for _, s := range pod.Status.ContainerStatuses {
			note(&t.app, s.State.Running != nil)
		}
		for _, s := range pod.Status.Conditions {
			note(&t.ready, s.Type == corev1.PodReady && s.Status == corev1.ConditionTrue)
		}
		if t.ready > 0 {
			return errDone
		}
		return nil
	})
	if errors.Is(err, errDone) {
		err = nil
	}
	if err != nil {
		return t, fmt.Errorf("pod %s: %w; last seen: %+v", name, err, last)
	}
	return t, nil
}

// processor reads what the kernel's scheduler knows of the Envoy in a network namespace (Linux: /proc/PID/schedstat).
func processor(netns string) (cpu, queued time.Duration, err error) {
	pid, err := envoyIn(netns)
	if err != nil {
		return 0, 0, err
	}
	return pid.processor()
}

// process is a PID.
type process int

// envoyIn finds the Envoy in a network namespace.
func envoyIn(netns string) (process, error) {
	want, err := os.Stat(netns)
	if err != nil {
		return 0, err
	}
	found, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	for _, dir := range found {
		// Processes end while this looks.
		exe, _ := os.Readlink(filepath.Join(dir, "exe"))
		if filepath.Base(exe) != "envoy" {
			continue
		}
		if ns, err := os.Stat(filepath.Join(dir, "ns/net")); err != nil || !os.SameFile(ns, want) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		return process(pid), err
	}
	return 0, fmt.Errorf("no Envoy in network namespace %s", netns)
}

// processor is the time that all threads ran, and the time that the main thread was runnable and had to wait.
func (p process) processor() (cpu, queued time.Duration, err error) {
	found, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p))
	if err != nil {
		return 0, 0, err
	}
	for _, file := range found {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // a thread that has ended
		}
		var ran, waited int64
		if _, err := fmt.Sscan(string(text), &ran, &waited); err != nil {
			return 0, 0, fmt.Errorf("%s: %q: %w", file, text, err)
		}
		cpu += time.Duration(ran)
		if filepath.Base(filepath.Dir(file)) == strconv.Itoa(int(p)) {
			queued = time.Duration(waited)
		}
	}
	if cpu == 0 {
		return 0, 0, fmt.Errorf("process %d has ended", p)
	}
	return cpu, queued, nil
}
