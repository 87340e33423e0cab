package pod

import (
	"context"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const twoContainers = `
spec:
  restartPolicy: Always
  terminationGracePeriodSeconds: 1
  initContainers:
  - name: prepare
    image: sh
    args: [-c, "echo prepared > /scratch/file; echo init done"]
    volumeMounts: [{name: work, mountPath: /scratch}]
  - name: proxy
    image: test
    restartPolicy: Always
    env: [{name: TEST_PROGRAM, value: serve}]
    ports: [{name: http, containerPort: 8080}]
    startupProbe: {httpGet: {path: /ready, port: http}, periodSeconds: 1}
  containers:
  - name: app
    image: sh
    args: [-c, "cat /scratch/file; exec sleep 1000"]
    volumeMounts: [{name: work, mountPath: /scratch}]
  - name: other
    image: sh
    args: [-c, "hostname; exec sleep 1000"]
  volumes: [{name: work, emptyDir: {}}]
`

func TestPodWithInitContainerSidecarAndTwoContainersBecomesReady(t *testing.T) {
	n := newNode(t, nil)
	begin := time.Now()
	pod := n.start(twoContainers)
	s := n.until(pod, "ready", ready)
	t.Logf("ready after %v", time.Since(begin).Round(time.Millisecond))
	equal(t, "phase", s.Phase, corev1.PodRunning)
	equal(t, "pod IPs", len(s.PodIPs), 2)
	equal(t, "host IP", s.HostIP, "10.0.0.1")
	for _, c := range s.Conditions {
		equal(t, string(c.Type), c.Status, corev1.ConditionTrue)
	}
	equal(t, "init containers", len(s.InitContainerStatuses), 2)
	equal(t, "init container's reason", s.InitContainerStatuses[0].State.Terminated.Reason, "Completed")
	equal(t, "sidecar started", *s.InitContainerStatuses[1].Started, true)
	n.untilLog(pod, "app", "prepared\n")
	n.untilLog(pod, "other", "web\n")
	equal(t, "log of an init container that is done", n.logs(pod, "prepare", LogOptions{}), "init done\n")

	if err := n.Check(t.Context(), pod.UID); err != nil {
		t.Errorf("CNI CHECK: %v", err)
	}
	path, ok := n.NetNS(pod.UID)
	if !ok || !strings.HasPrefix(path, n.cfg.Root) {
		t.Errorf("NetNS: %q, %v", path, ok)
	}
	code, _ := httpGet(t, "http://"+s.PodIP+":8080/ready")
	equal(t, "request from the node", code, 200)

	if err := n.Stop(context.Background(), pod.UID, 0); err != nil {
		t.Fatal(err)
	}
	if _, ok := n.NetNS(pod.UID); ok {
		t.Error("a stopped pod has a network namespace")
	}
}

func TestFailingStartupProbeOfSidecarKeepsTheAppFromStarting(t *testing.T) {
	n := newNode(t, nil)
	pod := n.start(`
spec:
  initContainers:
  - name: proxy
    image: test
    restartPolicy: Always
    env: [{name: TEST_PROGRAM, value: serve}]
    startupProbe: {httpGet: {path: /nowhere, port: 8080}, periodSeconds: 1, failureThreshold: 2}
  containers:
  - {name: app, image: sh, args: [-c, "echo started"]}
`)
	n.untilEvent("Unhealthy Startup probe failed: HTTP probe failed with statuscode: 404")
	n.untilEvent("Killing Container proxy failed startup probe, will be restarted")
	s := n.until(pod, "sidecar restarted", func(s corev1.PodStatus) bool {
		return len(s.InitContainerStatuses) > 0 && s.InitContainerStatuses[0].RestartCount > 0
	})
	equal(t, "phase", s.Phase, corev1.PodPending)
	equal(t, "app's state", s.ContainerStatuses[0].State.Waiting.Reason, "PodInitializing")
	if ready(s) {
		t.Error("the pod is ready")
	}
	if err := n.Logs(t.Context(), pod.UID, "app", LogOptions{}, &strings.Builder{}); err == nil || !strings.Contains(err.Error(), "waiting to start: PodInitializing") {
		t.Errorf("log of a container that waits: %v", err)
	}
}

func TestJobSucceedsAndItsSidecarIsStoppedAfterwards(t *testing.T) {
	n := newNode(t, nil)
	pod := n.start(`
spec:
  restartPolicy: Never
  initContainers:
  - {name: proxy, image: test, restartPolicy: Always, env: [{name: TEST_PROGRAM, value: term}]}
  containers:
  - {name: job, image: sh, args: [-c, "echo working; sleep 0.2"]}
`)
	s := n.until(pod, "end of all", func(s corev1.PodStatus) bool {
		return s.Phase == corev1.PodSucceeded && s.InitContainerStatuses[0].State.Terminated != nil
	})
	equal(t, "job's exit code", s.ContainerStatuses[0].State.Terminated.ExitCode, 0)
	equal(t, "sidecar's exit code", s.InitContainerStatuses[0].State.Terminated.ExitCode, 0)
	equal(t, "sidecar's log", n.logs(pod, "proxy", LogOptions{}), "up\ngot SIGTERM\n")
	equal(t, "job's log, kept", n.logs(pod, "job", LogOptions{}), "working\n")
	if s.ContainerStatuses[0].State.Terminated.FinishedAt.After(s.InitContainerStatuses[0].State.Terminated.FinishedAt.Time) {
		t.Error("the sidecar ended before the job")
	}
	for _, c := range s.Conditions {
		if c.Type == corev1.PodReady {
			equal(t, "reason of not being ready", c.Reason, "PodCompleted")
		}
	}
	eventually(t, "the network to be released", func() bool { _, ok := n.NetNS(pod.UID); return !ok })
}

func TestFailedJobIsRetriedOnlyWhenItsPolicySaysSo(t *testing.T) {
	n := newNode(t, nil)
	job := func(name, policy string) *corev1.Pod {
		return n.start(`
metadata: {name: ` + name + `}
spec:
  restartPolicy: ` + policy + `
  containers:
  - name: job
    image: sh
    args: [-c, "test -e /scratch/second && exit 0; touch /scratch/second; exit 3"]
    volumeMounts: [{name: work, mountPath: /scratch}]
  volumes: [{name: work, emptyDir: {}}]
`)
	}
	never, onFailure := job("never", "Never"), job("onfailure", "OnFailure")
	s := n.until(never, "failure", func(s corev1.PodStatus) bool { return s.Phase == corev1.PodFailed })
	equal(t, "exit code", s.ContainerStatuses[0].State.Terminated.ExitCode, 3)
	equal(t, "restarts", s.ContainerStatuses[0].RestartCount, 0)
	s = n.until(onFailure, "success", func(s corev1.PodStatus) bool { return s.Phase == corev1.PodSucceeded })
	equal(t, "restarts", s.ContainerStatuses[0].RestartCount, 1)
	equal(t, "exit code before", s.ContainerStatuses[0].LastTerminationState.Terminated.ExitCode, 3)
}

func TestFailedInitContainerFailsAPodThatIsNotRestarted(t *testing.T) {
	n := newNode(t, nil)
	pod := n.start(`
spec:
  restartPolicy: Never
  initContainers: [{name: prepare, image: sh, args: [-c, "exit 4"]}]
  containers: [{name: app, image: sh, args: [-c, "echo started"]}]
`)
	s := n.until(pod, "failure", func(s corev1.PodStatus) bool { return s.Phase == corev1.PodFailed })
	equal(t, "exit code", s.InitContainerStatuses[0].State.Terminated.ExitCode, 4)
	if s.ContainerStatuses[0].State.Waiting == nil {
		t.Errorf("the app was started: %+v", s.ContainerStatuses[0].State)
	}
}

func TestPodOverItsActiveDeadlineFails(t *testing.T) {
	n := newNode(t, nil)
	pod := n.start(`
spec:
  activeDeadlineSeconds: 1
  terminationGracePeriodSeconds: 5
  containers: [{name: app, image: test, env: [{name: TEST_PROGRAM, value: term}]}]
`)
	s := n.until(pod, "failure", func(s corev1.PodStatus) bool {
		return s.Phase == corev1.PodFailed && s.ContainerStatuses[0].State.Terminated != nil
	})
	equal(t, "reason", s.Reason, "DeadlineExceeded")
}

func TestUnmappedImageSaysHowToMapIt(t *testing.T) {
	n := newNode(t, nil)
	pod := n.start(`
spec:
  containers: [{name: app, image: "example.com/unknown:v1"}]
`)
	s := n.until(pod, "waiting", func(s corev1.PodStatus) bool {
		return len(s.ContainerStatuses) > 0 && s.ContainerStatuses[0].State.Waiting != nil && s.ContainerStatuses[0].State.Waiting.Reason == "ImageNotMapped"
	})
	message := s.ContainerStatuses[0].State.Waiting.Message
	if !strings.Contains(message, "--image example.com/unknown=") {
		t.Errorf("message: %s", message)
	}
	equal(t, "phase", s.Phase, corev1.PodPending)
	equal(t, "restarts", s.ContainerStatuses[0].RestartCount, 0)
}

func TestPodsThatCannotBeRunAreRefused(t *testing.T) {
	n := newNode(t, nil)
	pod := podFrom(t, `{spec: {hostPID: true, containers: [{name: app, image: sh}]}}`)
	if err := n.Start(pod); err == nil || !strings.Contains(err.Error(), "spec.hostPID") {
		t.Errorf("hostPID: %v", err)
	}
	pod.UID = "../../etc"
	if err := n.Start(pod); err == nil || !strings.Contains(err.Error(), "metadata.uid") {
		t.Errorf("UID with slashes: %v", err)
	}
	if err := n.Start(podFrom(t, `{spec: {}}`)); err == nil {
		t.Error("a pod without containers was accepted")
	}
	pod = n.start(`{spec: {containers: [{name: app, image: sh, args: [-c, "sleep 100"]}]}}`)
	if err := n.Start(pod); err == nil || !strings.Contains(err.Error(), "runs already") {
		t.Errorf("the same pod again: %v", err)
	}
	if err := n.Clean(t.Context()); err == nil || !strings.Contains(err.Error(), "stop them first") {
		t.Errorf("Clean beside a running pod: %v", err)
	}
	if err := n.Stop(t.Context(), "nobody", time.Second); err == nil {
		t.Error("Stop of an unknown pod succeeded")
	}
}
