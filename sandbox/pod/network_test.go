package pod

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/redirect"
)

// gate is a plugin that keeps what it was given, and refuses ADD while the file "broken" is beside it.
const gate = `#!/bin/sh
dir=$(dirname "$0")
cat > "$dir/$CNI_COMMAND.json"
echo "$CNI_ARGS" > "$dir/$CNI_COMMAND.args"
if [ "$CNI_COMMAND" = ADD ] && [ -e "$dir/broken" ]; then
  echo '{"cniVersion":"1.1.0","code":100,"msg":"the annotation weft.dev/redirect is wrong"}'
  exit 1
fi
[ "$CNI_COMMAND" = ADD ] && sed 's/.*"prevResult":\({.*}\),"runtimeConfig".*/\1/' "$dir/ADD.json"
exit 0
`

func TestFailingCNIPluginIsShownAndThePodStartsWhenItHeals(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "gate"), []byte(gate), 0o755); err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(dir, "broken")
	if err := os.WriteFile(broken, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	n := newNode(t, func(c *Config) {
		c.CNI.Path = append(c.CNI.Path, dir)
		c.CNI.Conflist = []byte(strings.Replace(string(c.CNI.Conflist), `}}]}`, `}},
			{"type":"gate","capabilities":{"io.kubernetes.cri.pod-annotations":true,"portMappings":true}}]}`, 1))
	})
	pod := n.start(`
metadata: {annotations: {weft.dev/redirect: "{}"}}
spec:
  containers: [{name: app, image: sh, args: [-c, "exec sleep 1000"], ports: [{containerPort: 80, hostPort: 8080}, {containerPort: 53, hostPort: 53, protocol: UDP}]}]
`)
	event := n.untilEvent("FailedCreatePodSandBox")
	for _, want := range []string{
		"Warning FailedCreatePodSandBox Failed to create pod sandbox: failed to setup network for sandbox ",
		`plugin type="gate" failed (add): the annotation weft.dev/redirect is wrong`,
	} {
		if !strings.Contains(event, want) {
			t.Errorf("event has no %q: %s", want, event)
		}
	}
	s := n.until(pod, "message in the status", func(s corev1.PodStatus) bool {
		return len(s.ContainerStatuses) > 0 && s.ContainerStatuses[0].State.Waiting != nil && s.ContainerStatuses[0].State.Waiting.Message != ""
	})
	equal(t, "phase", s.Phase, corev1.PodPending)
	equal(t, "reason", s.ContainerStatuses[0].State.Waiting.Reason, "ContainerCreating")
	eventually(t, "the address to be given back", func() bool { return len(leases(t, n)) == 0 })

	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	n.until(pod, "ready", ready)

	var given struct {
		RuntimeConfig struct {
			Annotations  map[string]string `json:"io.kubernetes.cri.pod-annotations"`
			PortMappings []portMapping     `json:"portMappings"`
		} `json:"runtimeConfig"`
	}
	data, err := os.ReadFile(filepath.Join(dir, "ADD.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &given); err != nil {
		t.Fatal(err)
	}
	equal(t, "annotations", given.RuntimeConfig.Annotations, map[string]string{"weft.dev/redirect": "{}"})
	equal(t, "port mappings", given.RuntimeConfig.PortMappings, []portMapping{{8080, 80, "tcp", ""}, {53, 53, "udp", ""}})
	args, err := os.ReadFile(filepath.Join(dir, "ADD.args"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"IgnoreUnknown=1", "K8S_POD_NAMESPACE=default", "K8S_POD_NAME=web", "K8S_POD_UID=uid-web", "K8S_POD_INFRA_CONTAINER_ID="} {
		if !strings.Contains(string(args), want) {
			t.Errorf("CNI_ARGS has no %s: %s", want, args)
		}
	}
	if err := n.Stop(t.Context(), pod.UID, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "DEL.json")); err != nil {
		t.Errorf("the plugin saw no DEL: %v", err)
	}
	equal(t, "addresses after Stop", leases(t, n), []string{})
}

// leases are the addresses that host-local has given out.
func leases(t *testing.T, n *node) []string {
	t.Helper()
	found, err := filepath.Glob(n.path("ipam", "test", "*:*"))
	if err != nil {
		t.Fatal(err)
	}
	v4, err := filepath.Glob(n.path("ipam", "test", "10.*"))
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, f := range append(found, v4...) {
		out = append(out, filepath.Base(f))
	}
	return out
}

func TestPodsTalkToEachOtherAndToThemselves(t *testing.T) {
	n := newNode(t, nil)
	serve := func(name string) (*corev1.Pod, corev1.PodStatus) {
		pod := n.start(served(name, "readinessProbe: {tcpSocket: {port: 8080}}"))
		return pod, n.until(pod, name, ready)
	}
	a, sa := serve("a")
	_, sb := serve("b")
	for _, ip := range []string{sb.PodIPs[0].IP, "[" + sb.PodIPs[1].IP + "]", sa.PodIP, "127.0.0.1", "[::1]"} {
		// bash and its /dev/tcp are on every Debian; dash is not enough here.
		host := strings.Trim(ip, "[]")
		got := n.bash(a, "app", fmt.Sprintf(`exec 3<>/dev/tcp/%s/8080; printf 'GET /ready HTTP/1.0\r\n\r\n' >&3; head -1 <&3`, host))
		if !strings.Contains(got, "200 OK") {
			t.Errorf("%s: %q", ip, got)
		}
	}
}

func TestRedirectionIsInTheChainAndCheckedByIt(t *testing.T) {
	kit.Root(t)
	weftCNI := kit.Program(t, "weft-cni")
	n := newNode(t, func(c *Config) {
		c.CNI.Path = append(c.CNI.Path, filepath.Dir(weftCNI))
		c.CNI.Conflist = []byte(strings.Replace(string(c.CNI.Conflist), `}}]}`, fmt.Sprintf(`}},
			{"type":"weft-cni","stateDir":%q,"capabilities":{"io.kubernetes.cri.pod-annotations":true}}]}`, filepath.Join(c.Root, "weft-cni")), 1))
	})
	spec := redirect.Default()
	pod := podFrom(t, `{spec: {containers: [{name: app, image: sh, args: [-c, "exec sleep 1000"]}]}}`)
	pod.Annotations = map[string]string{redirect.Annotation: spec.Encode()}
	if err := n.Start(pod); err != nil {
		t.Fatal(err)
	}
	n.until(pod, "ready", ready)
	if err := n.Check(t.Context(), pod.UID); err != nil {
		t.Errorf("CHECK of a new pod: %v", err)
	}
	path, _ := n.NetNS(pod.UID)
	backend, err := redirect.Open("nftables")
	if err != nil {
		t.Fatal(err)
	}
	if err := redirect.InNetNS(path, func() error {
		if wrong, err := backend.Verify(spec); err != nil || len(wrong) > 0 {
			return fmt.Errorf("rules of a new pod: %v, %w", wrong, err)
		}
		return backend.Remove()
	}); err != nil {
		t.Fatal(err)
	}
	if err := n.Check(t.Context(), pod.UID); err == nil {
		t.Error("CHECK finds nothing wrong with a pod whose rules were removed")
	}

	// A wrong annotation fails the pod's sandbox, visibly.
	bad := podFrom(t, `{metadata: {name: bad}, spec: {containers: [{name: app, image: sh}]}}`)
	bad.Annotations = map[string]string{redirect.Annotation: "nonsense"}
	if err := n.Start(bad); err != nil {
		t.Fatal(err)
	}
	if event := n.untilEvent("FailedCreatePodSandBox"); !strings.Contains(event, redirect.Annotation) {
		t.Errorf("event does not name the annotation: %s", event)
	}
}

func (n *node) bash(pod *corev1.Pod, container, command string) string {
	n.t.Helper()
	var out, errs strings.Builder
	code, err := n.Exec(n.t.Context(), pod.UID, container, []string{"/bin/bash", "-c", command}, nil, &out, &errs)
	if err != nil || code != 0 {
		n.t.Fatalf("exec %q: code %d, error %v\n%s%s", command, code, err, out.String(), errs.String())
	}
	return out.String()
}
