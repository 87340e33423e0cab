package pod

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const server = `
  - name: app
    image: test
    env: [{name: TEST_PROGRAM, value: serve}]
    ports: [{name: http, containerPort: 8080}]
`

// served returns a pod that serves and has these probes.
func served(name, probes string) string {
	return "metadata: {name: " + name + "}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:" + server + "    " + probes + "\n"
}

func TestEveryKindOfProbeMakesAContainerReady(t *testing.T) {
	n := newNode(t, nil)
	for name, probe := range map[string]string{
		"http":    `httpGet: {path: /ready, port: http}`,
		"headers": `httpGet: {path: "/header?q=1", port: 8080, httpHeaders: [{name: X-Probe, value: "yes"}, {name: Host, value: probe.example}]}`,
		"tcp":     `tcpSocket: {port: http}`,
		"grpc":    `grpc: {port: 9090, service: good}`,
		"exec":    `exec: {command: [/bin/sh, -c, "test -e /etc/hostname"]}`,
	} {
		begin := time.Now()
		pod := n.start(served(name, "readinessProbe: {"+probe+"}"))
		n.until(pod, name+" ready", ready)
		t.Logf("%s: ready after %v", name, time.Since(begin).Round(time.Millisecond))
	}
}

func TestFailingProbesTellWhatKubeletTells(t *testing.T) {
	n := newNode(t, nil)
	pods := map[string]*corev1.Pod{}
	var wanted []string
	for name, c := range map[string]struct{ probe, want string }{
		"http":     {`httpGet: {path: /nowhere, port: http}`, "Warning Unhealthy Readiness probe failed: HTTP probe failed with statuscode: 404"},
		"refused":  {`httpGet: {path: /x, port: 7070}`, ":7070: connect: connection refused"},
		"https":    {`httpGet: {path: /ready, port: http, scheme: HTTPS}`, "http: server gave HTTP response to HTTPS client"},
		"port":     {`httpGet: {path: /ready, port: nope}`, `Readiness probe errored and resulted in unknown state: container app has no port named "nope"`},
		"tcp":      {`tcpSocket: {port: 7070}`, "Readiness probe failed: dial tcp "},
		"grpc":     {`grpc: {port: 9090, service: bad}`, `Readiness probe failed: service unhealthy (responded with "NOT_SERVING")`},
		"unknown":  {`grpc: {port: 9090, service: unknown}`, "error: health rpc probe failed"},
		"nogrpc":   {`grpc: {port: 7070}`, "Readiness probe failed: error: failed to connect service"},
		"exec":     {`exec: {command: [sh, -c, "echo sick; exit 1"]}`, "Readiness probe failed: sick"},
		"timeout":  {`exec: {command: [sleep, "30"]}`, `Readiness probe failed: command timed out: "sleep 30" timed out after 1s`},
		"notfound": {`exec: {command: [nothing-like-it]}`, `executable file not found in $PATH`},
	} {
		pods[name] = n.start(served(name, "readinessProbe: {periodSeconds: 1, "+c.probe+"}"))
		wanted = append(wanted, c.want)
	}
	for _, want := range wanted {
		n.untilEvent(want)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, pod := range pods {
		if ready(n.status[pod.UID]) {
			t.Errorf("%s: ready in spite of its probe", name)
		}
	}
}

func TestReadinessFollowsTheProbe(t *testing.T) {
	n := newNode(t, nil)
	pod := n.start(served("web", "readinessProbe: {periodSeconds: 1, failureThreshold: 1, httpGet: {path: /ready, port: 8080}}"))
	s := n.until(pod, "ready", ready)
	httpGet(t, "http://"+s.PodIP+":8080/set?ready=no")
	s = n.until(pod, "unready", func(s corev1.PodStatus) bool { return !ready(s) })
	equal(t, "phase", s.Phase, corev1.PodRunning)
	for _, c := range s.Conditions {
		if c.Type == corev1.PodReady {
			equal(t, "reason", c.Reason+": "+c.Message, "ContainersNotReady: containers with unready status: [app]")
		}
	}
	httpGet(t, "http://"+s.PodIP+":8080/set?ready=yes")
	s = n.until(pod, "ready again", ready)
	equal(t, "restarts", s.ContainerStatuses[0].RestartCount, 0)
}

func TestFailingLivenessProbeRestartsTheContainer(t *testing.T) {
	n := newNode(t, nil)
	pod := n.start(served("web", "livenessProbe: {periodSeconds: 1, failureThreshold: 1, httpGet: {path: /ready, port: 8080}}"))
	s := n.until(pod, "ready", ready)
	eventually(t, "the server", func() bool {
		var out strings.Builder
		code, err := n.Exec(t.Context(), pod.UID, "app", []string{"sh", "-c", "grep -q :1F90 /proc/net/tcp /proc/net/tcp6"}, nil, &out, &out)
		return err == nil && code == 0
	})
	httpGet(t, "http://"+s.PodIP+":8080/set?ready=no")
	n.untilEvent("Killing Container app failed liveness probe, will be restarted")
	s = n.until(pod, "restart", func(s corev1.PodStatus) bool { return s.ContainerStatuses[0].RestartCount == 1 && ready(s) })
	if s.ContainerStatuses[0].LastTerminationState.Terminated == nil {
		t.Error("the former instance is not shown")
	}
}

func TestExtraProbeAttemptsComeBetweenThoseThatCount(t *testing.T) {
	begin := time.Now()
	r := rhythm{begin: begin, period: time.Second, tick: begin.Add(time.Second), eager: true}
	at, counts := r.next(begin, true)
	if !at.Equal(begin) || counts {
		t.Errorf("first attempt at %v, counts %v", at.Sub(begin), counts)
	}
	extra, counted := 0, 0
	for at.Before(begin.Add(5 * time.Second)) {
		at, counts = r.next(at, false)
		if counts {
			counted++
			equal(t, "tick", at.Sub(begin), time.Duration(counted)*time.Second)
		} else {
			extra++
		}
	}
	equal(t, "counted", counted, 5)
	if extra < 80 || extra > 120 {
		t.Errorf("%d extra attempts in 5 s", extra)
	}
	// A probe that hangs past its tick does not make up for it.
	r = rhythm{begin: begin, period: time.Second, tick: begin.Add(time.Second)}
	r.next(begin, false)
	at, _ = r.next(begin.Add(3500*time.Millisecond), false)
	if at.After(begin.Add(3500 * time.Millisecond)) {
		t.Errorf("late tick at %v", at.Sub(begin))
	}
	at, _ = r.next(begin.Add(3600*time.Millisecond), false)
	equal(t, "tick after a late one", at.Sub(begin), 4*time.Second)
}
