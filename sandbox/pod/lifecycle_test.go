package pod

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func TestCrashingContainerIsRestartedWithGrowingDelay(t *testing.T) {
	n := newNode(t, nil)
	pod := n.start(`
spec:
  containers:
  - name: app
    image: sh
    args: [-c, "N=$(cat /v/n 2>/dev/null || echo 0); N=$((N+1)); echo $N > /v/n; echo run $N; echo why $N > /dev/termination-log; exit $N"]
    volumeMounts: [{name: v, mountPath: /v}]
  volumes: [{name: v, emptyDir: {}}]
`)
	begin := time.Now()
	s := n.until(pod, "first back-off", func(s corev1.PodStatus) bool {
		return len(s.ContainerStatuses) > 0 && s.ContainerStatuses[0].State.Waiting != nil && s.ContainerStatuses[0].State.Waiting.Reason == "CrashLoopBackOff"
	})
	c := s.ContainerStatuses[0]
	// The first restart is immediate, as kubelet's is.
	equal(t, "restarts", c.RestartCount, 1)
	equal(t, "message", c.State.Waiting.Message, "back-off 200ms restarting failed container=app pod=web_default(uid-web)")
	equal(t, "last exit code", c.LastTerminationState.Terminated.ExitCode, 2)
	equal(t, "last message", c.LastTerminationState.Terminated.Message, "why 2\n")
	equal(t, "phase", s.Phase, corev1.PodRunning)
	n.untilEvent("Warning BackOff Back-off restarting failed container app in pod web_default(uid-web)")
	s = n.until(pod, "second back-off", func(s corev1.PodStatus) bool {
		w := s.ContainerStatuses[0].State.Waiting
		return w != nil && strings.HasPrefix(w.Message, "back-off 400ms")
	})
	equal(t, "restarts", s.ContainerStatuses[0].RestartCount, 2)
	if d := time.Since(begin); d < 200*time.Millisecond {
		t.Errorf("second restart after %v", d)
	}
	n.until(pod, "third restart", func(s corev1.PodStatus) bool { return s.ContainerStatuses[0].RestartCount == 3 })
	n.untilLog(pod, "app", "run 4\n")
	eventually(t, "the log before", func() bool { return n.logs(pod, "app", LogOptions{Previous: true}) != "" })
	if previous := n.logs(pod, "app", LogOptions{Previous: true}); previous != "run 3\n" && previous != "run 4\n" {
		t.Errorf("previous log: %q", previous)
	}
}

func TestBackOffDoublesIsCappedAndForgotten(t *testing.T) {
	b := backOff{base: 10 * time.Second}
	now := time.Now()
	var got []float64
	for range 8 {
		delay := b.next(now)
		got = append(got, delay.Seconds())
		now = now.Add(delay)
		b.started(now)
	}
	equal(t, "delays in seconds", got, "[0 10 20 40 80 160 300 300]")
	equal(t, "after a long good run", b.next(now.Add(11*time.Minute)), time.Duration(0))
	b.started(now.Add(11 * time.Minute))
	equal(t, "and a crash after that", b.next(now.Add(11*time.Minute)), 10*time.Second)
}

func TestCommandThatDoesNotExistIsShownAsStartError(t *testing.T) {
	n := newNode(t, nil)
	pod := n.start(`
spec:
  restartPolicy: Never
  containers: [{name: app, image: sh, command: [no-such-program]}]
`)
	s := n.until(pod, "failure", func(s corev1.PodStatus) bool { return s.Phase == corev1.PodFailed })
	terminated := s.ContainerStatuses[0].State.Terminated
	equal(t, "reason", terminated.Reason, "StartError")
	equal(t, "exit code", terminated.ExitCode, 128)
	equal(t, "message", terminated.Message, `exec: "no-such-program": executable file not found in $PATH`)
}

func TestTerminationMessageFallsBackToTheLog(t *testing.T) {
	n := newNode(t, nil)
	pod := n.start(`
spec:
  restartPolicy: Never
  containers: [{name: app, image: sh, args: [-c, "echo the reason >&2; exit 3"], terminationMessagePolicy: FallbackToLogsOnError}]
`)
	s := n.until(pod, "failure", func(s corev1.PodStatus) bool { return s.Phase == corev1.PodFailed })
	equal(t, "message", s.ContainerStatuses[0].State.Terminated.Message, "the reason\n")
}

func TestStopHonoursGraceHooksAndOrder(t *testing.T) {
	n := newNode(t, nil)
	host := t.TempDir()
	pod := n.start(`
spec:
  initContainers:
  - name: first
    image: sh
    restartPolicy: Always
    args: [-c, "trap 'echo first >> /v/order; exit 0' TERM; touch /v/first; while :; do sleep 0.02; done"]
    lifecycle: {preStop: {exec: {command: [sh, -c, "touch /v/sidecar-hook"]}}}
    volumeMounts: [{name: v, mountPath: /v}]
  - name: second
    image: sh
    restartPolicy: Always
    args: [-c, "trap 'echo second >> /v/order; exit 0' TERM; touch /v/second; while :; do sleep 0.02; done"]
    volumeMounts: [{name: v, mountPath: /v}]
  containers:
  - name: app
    image: sh
    args: [-c, "trap 'until [ -e /v/sidecar-hook ]; do sleep 0.02; done; echo app >> /v/order; exit 0' TERM; touch /v/app; while :; do sleep 0.02; done"]
    lifecycle: {preStop: {exec: {command: [sh, -c, "echo hook >> /v/order"]}}}
    volumeMounts: [{name: v, mountPath: /v}]
  volumes: [{name: v, hostPath: {path: ` + host + `}}]
`)
	n.until(pod, "ready", ready)
	eventually(t, "traps", func() bool {
		for _, name := range []string{"first", "second", "app"} {
			if _, err := os.Stat(host + "/" + name); err != nil {
				return false
			}
		}
		return true
	})
	begin := time.Now()
	if err := n.Stop(context.Background(), pod.UID, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("stopped after %v, though all went at once", d)
	}
	order, err := os.ReadFile(host + "/order")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "order", string(order), "hook\napp\nsecond\nfirst\n")
	n.untilEvent("Normal Killing Stopping container app")
}

func TestContainerThatIgnoresSIGTERMIsKilledAfterTheGrace(t *testing.T) {
	n := newNode(t, nil)
	var last corev1.PodStatus
	for name, c := range map[string]struct {
		grace    time.Duration
		least    time.Duration
		most     time.Duration
		cutAfter time.Duration
	}{
		"grace":  {grace: 2 * time.Second, least: 2 * time.Second, most: 4 * time.Second},
		"force":  {grace: 0, most: time.Second},
		"cancel": {grace: time.Minute, cutAfter: 300 * time.Millisecond, least: 300 * time.Millisecond, most: 3 * time.Second},
	} {
		pod := n.start(`{metadata: {name: ` + name + `}, spec: {containers: [{name: app, image: sh, args: [-c, "trap '' TERM; while :; do sleep 1; done"]}]}}`)
		n.until(pod, "ready", ready)
		ctx := context.Background()
		if c.cutAfter > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, c.cutAfter)
			defer cancel()
		}
		begin := time.Now()
		if err := n.Stop(ctx, pod.UID, c.grace); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begin); d < c.least || d > c.most {
			t.Errorf("%s: stopped after %v, want %v to %v", name, d, c.least, c.most)
		}
		n.mu.Lock()
		last = n.status[pod.UID]
		n.mu.Unlock()
		equal(t, name+": exit code", last.ContainerStatuses[0].State.Terminated.ExitCode, 137)
	}
}

func TestPodCanBeStoppedAtAnyMoment(t *testing.T) {
	n := newNode(t, nil)
	for i := range 20 {
		pod := n.start(strings.ReplaceAll(twoContainers, "periodSeconds: 1}", "periodSeconds: 1, initialDelaySeconds: 1}"))
		if !wait(t.Context(), time.Duration(i)*4*time.Millisecond) {
			t.Fatal("test is over")
		}
		done := make(chan error, 1)
		go func() { done <- n.Stop(context.Background(), pod.UID, 0) }()
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("stop after %d ms hangs", i*4)
		}
		for _, kind := range []string{"pods", "netns", "ipcns", "utsns"} {
			if entries, err := os.ReadDir(n.path(kind)); err != nil || len(entries) > 0 {
				t.Fatalf("%s after a stop after %d ms: %v (%v)", kind, i*4, entries, err)
			}
		}
	}
	if entries, err := os.ReadDir(n.path("ipam", "test")); err == nil {
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), "10.") || strings.HasPrefix(e.Name(), "fd00") {
				t.Errorf("address %s is still taken", e.Name())
			}
		}
	}
}

func TestPodIsStoppedWhileItsInitContainerRuns(t *testing.T) {
	n := newNode(t, nil)
	pod := n.start(`
spec:
  initContainers: [{name: slow, image: test, env: [{name: TEST_PROGRAM, value: term}]}]
  containers: [{name: app, image: sh}]
`)
	n.untilLog(pod, "slow", "up\n")
	begin := time.Now()
	if err := n.Stop(context.Background(), pod.UID, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("stopped after %v", d)
	}
}

func TestRestartRulesOfAContainerDecide(t *testing.T) {
	n := newNode(t, nil)
	pod := n.start(`
spec:
  restartPolicy: Never
  containers:
  - name: app
    image: sh
    args: [-c, "test -e /v/second && exit 43; touch /v/second; exit 42"]
    restartPolicy: Never
    restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]
    volumeMounts: [{name: v, mountPath: /v}]
  volumes: [{name: v, emptyDir: {}}]
`)
	s := n.until(pod, "failure", func(s corev1.PodStatus) bool { return s.Phase == corev1.PodFailed })
	equal(t, "restarts", s.ContainerStatuses[0].RestartCount, 1)
	equal(t, "exit code", s.ContainerStatuses[0].State.Terminated.ExitCode, 43)
}

func TestArgumentAsLargeAsTheKernelAllowsArrives(t *testing.T) {
	n := newNode(t, nil)
	pod := n.start(`{spec: {restartPolicy: Never, containers: [{name: app, image: sh, args: [-c, 'echo ${#1}', x, ` + strings.Repeat("y", 130000) + `]}]}}`)
	s := n.until(pod, "end", podEnded)
	equal(t, "exit code", s.ContainerStatuses[0].State.Terminated.ExitCode, 0)
	equal(t, "length", n.logs(pod, "app", LogOptions{}), "130000\n")
	pod = n.start(`{metadata: {name: large}, spec: {restartPolicy: Never, containers: [{name: app, image: sh, args: [-c, 'true', ` + strings.Repeat("y", 140000) + `]}]}}`)
	s = n.until(pod, "end", podEnded)
	if message := s.ContainerStatuses[0].State.Terminated.Message; !strings.Contains(message, "argument list too long") {
		t.Errorf("message: %s", message)
	}
}

func TestPostStartHookHoldsTheNextContainer(t *testing.T) {
	n := newNode(t, nil)
	pod := n.start(`
spec:
  containers:
  - name: first
    image: sh
    args: [-c, "exec sleep 1000"]
    lifecycle: {postStart: {exec: {command: [sh, -c, "sleep 0.3; touch /v/done"]}}}
    volumeMounts: [{name: v, mountPath: /v}]
  - name: second
    image: sh
    args: [-c, "ls /v; exec sleep 1000"]
    volumeMounts: [{name: v, mountPath: /v}]
  volumes: [{name: v, emptyDir: {}}]
`)
	n.until(pod, "ready", ready)
	n.untilLog(pod, "second", "done\n")
}

func TestFailedPostStartHookRestartsTheContainer(t *testing.T) {
	n := newNode(t, nil)
	pod := n.start(`
spec:
  terminationGracePeriodSeconds: 1
  initContainers:
  - name: proxy
    image: test
    restartPolicy: Always
    env: [{name: TEST_PROGRAM, value: term}]
    lifecycle: {postStart: {exec: {command: [sh, -c, "echo not ready > /dev/termination-log; exit 1"]}}}
  containers: [{name: app, image: sh, args: [-c, "sleep 1000"]}]
`)
	n.untilEvent("Warning FailedPostStartHook PostStartHook failed")
	s := n.until(pod, "restart", func(s corev1.PodStatus) bool {
		return len(s.InitContainerStatuses) > 0 && s.InitContainerStatuses[0].RestartCount > 0 && s.InitContainerStatuses[0].LastTerminationState.Terminated != nil
	})
	equal(t, "message", s.InitContainerStatuses[0].LastTerminationState.Terminated.Message, "not ready\n")
	if s.ContainerStatuses[0].State.Waiting == nil {
		t.Error("the app was started")
	}
}

func TestExecRunsInTheContainer(t *testing.T) {
	n := newNode(t, nil)
	pod := n.start(`
spec:
  containers:
  - {name: app, image: sh, workingDir: /tmp, env: [{name: WHO, value: me}], args: [-c, "exec sleep 1000"]}
`)
	n.until(pod, "ready", ready)
	equal(t, "directory, variable, hostname", n.sh(pod, "app", "pwd; echo $WHO; hostname"), "/tmp\nme\nweb")
	var out, errs bytes.Buffer
	code, err := n.Exec(t.Context(), pod.UID, "app", []string{"sh", "-c", "cat; echo oops >&2; exit 7"}, strings.NewReader("hello"), &out, &errs)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "result", []any{code, out.String(), errs.String()}, []any{7, "hello", "oops\n"})
	code, err = n.Exec(t.Context(), pod.UID, "app", []string{"sh", "-c", "kill -15 $$"}, nil, nil, nil)
	equal(t, "ended by a signal", []any{code, err}, []any{143, nil})
	if _, err := n.Exec(t.Context(), pod.UID, "app", []string{"nothing"}, nil, nil, nil); err == nil || !strings.Contains(err.Error(), "executable file not found") {
		t.Errorf("unknown program: %v", err)
	}
	if _, err := n.Exec(t.Context(), pod.UID, "nope", []string{"true"}, nil, nil, nil); err == nil || !strings.Contains(err.Error(), "it has app") {
		t.Errorf("unknown container: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := n.Exec(ctx, pod.UID, "app", []string{"sleep", "77"}, nil, nil, nil); err == nil || time.Since(begin) > 5*time.Second {
		t.Errorf("exec beyond its context: %v after %v", err, time.Since(begin))
	}
	equal(t, "processes after that", n.sh(pod, "app", "set -- /proc/[0-9]*; echo $#"), "2")
}

func TestHostNetworkPodHasTheNodesAddressAndNoCNI(t *testing.T) {
	n := newNode(t, func(c *Config) { c.CNI.Path = []string{"/nonexistent"} })
	pod := n.start(`{spec: {hostNetwork: true, containers: [{name: app, image: sh, args: [-c, "readlink /proc/self/ns/net; exec sleep 1000"]}]}}`)
	s := n.until(pod, "ready", ready)
	equal(t, "pod IP", s.PodIP, "10.0.0.1")
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	n.untilLog(pod, "app", own+"\n")
	if _, ok := n.NetNS(pod.UID); ok {
		t.Error("a pod on the host's network has a namespace of its own")
	}
	equal(t, "hostname", n.sh(pod, "app", "hostname"), "node-1")
}
