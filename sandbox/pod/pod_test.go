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
  terminationGracePeriodSeconds: 5
  initContainers:
  - name: prepare
    image: sh
    args: [-c, "echo prepared > /work/file; echo init done"]
    volumeMounts: [{name: work, mountPath: /work}]
  - name: proxy
    image: test
    restartPolicy: Always
    env: [{name: TEST_PROGRAM, value: serve}]
    ports: [{name: http, containerPort: 8080}]
    startupProbe: {httpGet: {path: /ready, port: http}, periodSeconds: 1}
  containers:
  - name: app
    image: sh
    args: [-c, "cat /work/file; exec sleep 1000"]
    volumeMounts: [{name: work, mountPath: /work}]
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
	equal(t, "app's log", n.logs(pod, "app", LogOptions{}), "prepared\n")
	equal(t, "hostname", n.logs(pod, "other", LogOptions{}), "web\n")

	if err := n.Check(t.Context(), pod.UID); err != nil {
		t.Errorf("CNI CHECK: %v", err)
	}
	path, ok := n.NetNS(pod.UID)
	if !ok || !strings.HasPrefix(path, n.cfg.Root) {
		t.Errorf("NetNS: %q, %v", path, ok)
	}
	code, _ := httpGet(t, "http://"+s.PodIP+":8080/ready")
	equal(t, "request from the node", code, 200)

	begin = time.Now()
	if err := n.Stop(context.Background(), pod.UID, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	t.Logf("stopped after %v", time.Since(begin).Round(time.Millisecond))
}
