package cni_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/weft-mesh/weft/cni"
	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/redirect"
	"github.com/weft-mesh/weft/redirect/nstest"
)

// node is a network namespace in which a container runtime runs CNI chains.
type node struct {
	*nstest.NS
	t    *testing.T
	dir  string
	path []string
	pods int
}

func newNode(t *testing.T) *node {
	t.Helper()
	kit.Root(t)
	return &node{NS: nstest.New(t), t: t, dir: t.TempDir(), path: []string{kit.CNIPlugins(t), filepath.Dir(kit.Program(t, "weft-cni"))}}
}

// chain is a conflist: bridge with host-local addresses, portmap, and weft-cni with the fields given.
func (n *node) chain(version string, weft map[string]any) *libcni.NetworkConfigList {
	n.t.Helper()
	entry := map[string]any{"type": "weft-cni", "stateDir": n.stateDir(), "capabilities": map[string]bool{cni.CapabilityAnnotations: true}}
	for k, v := range weft {
		if entry[k] = v; v == nil {
			delete(entry, k)
		}
	}
	return n.conflist(version,
		map[string]any{
			"type": "bridge", "bridge": "br0", "isGateway": true,
			"ipam": map[string]any{"type": "host-local", "dataDir": filepath.Join(n.dir, "ipam"), "ranges": []any{
				[]any{map[string]string{"subnet": "10.66.0.0/24"}}, []any{map[string]string{"subnet": "fd66::/64"}}}},
		},
		map[string]any{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}},
		entry)
}

func (n *node) conflist(version string, plugins ...any) *libcni.NetworkConfigList {
	n.t.Helper()
	b, err := json.Marshal(map[string]any{"cniVersion": version, "name": "pods", "plugins": plugins})
	if err != nil {
		n.t.Fatal(err)
	}
	l, err := libcni.ConfListFromBytes(b)
	if err != nil {
		n.t.Fatal(err)
	}
	return l
}

func (n *node) stateDir() string { return filepath.Join(n.dir, "state") }

// records are the attachments that the plugin remembers.
func (n *node) records() []string {
	entries, _ := os.ReadDir(filepath.Join(n.stateDir(), "pods"))
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func (n *node) runtime() *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir(n.path, filepath.Join(n.dir, "cache"), nil)
}

// sandbox is one pod's network namespace and what the runtime tells the plugins about the pod.
type sandbox struct {
	*nstest.NS
	args *libcni.RuntimeConf
}

func (n *node) pod(name string, annotations map[string]string) sandbox {
	ns := nstest.New(n.t)
	n.pods++ // container IDs are never used twice
	return sandbox{ns, &libcni.RuntimeConf{
		ContainerID: fmt.Sprintf("%s-%d", name, n.pods), NetNS: ns.Path, IfName: "eth0",
		Args:           [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", name}, {"K8S_POD_UID", "uid-" + name}},
		CapabilityArgs: map[string]any{cni.CapabilityAnnotations: annotations},
	}}
}

// add runs ADD from inside the node, as a container runtime does.
func (n *node) add(l *libcni.NetworkConfigList, s sandbox) (r types.Result, err error) {
	n.Do(func() { r, err = n.runtime().AddNetworkList(context.Background(), l, s.args) })
	return r, err
}

func (n *node) mustAdd(l *libcni.NetworkConfigList, s sandbox) types.Result {
	n.t.Helper()
	r, err := n.add(l, s)
	if err != nil {
		n.t.Fatalf("ADD: %v", err)
	}
	return r
}

func (n *node) check(l *libcni.NetworkConfigList, s sandbox) (err error) {
	n.Do(func() { err = n.runtime().CheckNetworkList(context.Background(), l, s.args) })
	return err
}

func (n *node) del(l *libcni.NetworkConfigList, s sandbox) (err error) {
	n.Do(func() { err = n.runtime().DelNetworkList(context.Background(), l, s.args) })
	return err
}

// rules says how the pod's rules differ from the Spec.
func (s sandbox) rules(t *testing.T, spec redirect.Spec) []string {
	t.Helper()
	b, err := redirect.Open(redirect.NFTables)
	if err != nil {
		t.Fatal(err)
	}
	var drift []string
	s.Do(func() { drift, err = b.Verify(spec) })
	if err != nil {
		t.Fatal(err)
	}
	return drift
}

func nothing() redirect.Spec {
	s := redirect.Default()
	s.Mode = redirect.None
	return s
}

func injected(spec redirect.Spec) map[string]string {
	return map[string]string{"app": "x", redirect.Annotation: spec.Encode()}
}

func TestAnInjectedPodIsRedirectedAndOthersAreNot(t *testing.T) {
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			n := newNode(t)
			l := n.chain(version, nil)
			spec := redirect.Default()
			spec.ExcludeInboundPorts = []uint16{9000}

			pod := n.pod("cart", injected(spec))
			n.mustAdd(l, pod)
			if drift := pod.rules(t, spec); len(drift) > 0 {
				t.Errorf("rules of the injected pod: %q", drift)
			}
			plain := n.pod("plain", map[string]string{"app": "y"})
			n.mustAdd(l, plain)
			if drift := plain.rules(t, nothing()); len(drift) > 0 {
				t.Errorf("a pod without annotation has rules: %q", drift)
			}
			bare := n.pod("bare", nil)
			n.mustAdd(l, bare)
			if drift := bare.rules(t, nothing()); len(drift) > 0 {
				t.Errorf("a pod without any annotations has rules: %q", drift)
			}
			if got := n.records(); len(got) != 1 || got[0] != "cart-1:eth0" {
				t.Errorf("remembered attachments %q, want only the injected pod's", got)
			}
			if version != "0.3.1" {
				if err := errors.Join(n.check(l, pod), n.check(l, plain)); err != nil {
					t.Errorf("CHECK: %v", err)
				}
			}
			for _, s := range []sandbox{pod, plain, bare, pod} {
				if err := n.del(l, s); err != nil {
					t.Errorf("DEL: %v", err)
				}
			}
			if drift := pod.rules(t, nothing()); len(drift) > 0 {
				t.Errorf("rules after DEL: %q", drift)
			}
			if got := n.records(); len(got) != 0 {
				t.Errorf("remembered after DEL: %q", got)
			}
		})
	}
}

func TestTheResultOfThePluginBeforeComesBackUnchanged(t *testing.T) {
	n := newNode(t)
	without := n.conflist("1.1.0", json.RawMessage(n.chain("1.1.0", nil).Plugins[0].Bytes))
	pod := n.pod("cart", injected(redirect.Default()))
	got := n.mustAdd(n.chain("1.1.0", nil), pod)
	if err := n.del(without, pod); err != nil {
		t.Fatal(err)
	}
	// A strange field and number formats that a decode and encode would change.
	prev := `{"cniVersion":"1.1.0", "interfaces":[{"name":"eth0","sandbox":"/x","mtu":1.5e3}],"ips":[{"address":"10.0.0.2/24","interface":0}],"dns":{},"x-vendor":{"b":1,"a":[2]}}`
	out, err := n.plugin("ADD", pod, fmt.Sprintf(`{"cniVersion":"1.1.0","name":"pods","type":"weft-cni","stateDir":%q,"runtimeConfig":{%q:%s},"prevResult":%s}`,
		n.stateDir(), cni.CapabilityAnnotations, mustJSON(pod.args.CapabilityArgs[cni.CapabilityAnnotations]), prev))
	if err != nil || strings.TrimSpace(out) != prev {
		t.Errorf("ADD printed %q (%v), want the previous result %q", out, err, prev)
	}
	if text := mustJSON(got); !strings.Contains(text, "10.66.0.") || !strings.Contains(text, "fd66::") || !strings.Contains(text, "eth0") {
		t.Errorf("the chain's result lost what bridge said: %s", text)
	}
	// Alone, as Multus may call it.
	out, err = n.plugin("ADD", pod, fmt.Sprintf(`{"cniVersion":"1.0.0","name":"pods","type":"weft-cni","stateDir":%q,"runtimeConfig":{%q:{}}}`, n.stateDir(), cni.CapabilityAnnotations))
	if err != nil || strings.TrimSpace(out) != `{"cniVersion":"1.0.0"}` {
		t.Errorf("ADD alone printed %q (%v)", out, err)
	}
}

func TestKubeletShowsWhatIsWrongWithAnAnnotation(t *testing.T) {
	n := newNode(t)
	l := n.chain("1.1.0", nil)
	for _, c := range []struct{ value, want string }{
		{`{"mode":"REDIRCT"}`, `plugin type="weft-cni" failed (add): weft: pod shop/cart: annotation weft.dev/redirect: value "{\"mode\":\"REDIRCT\"}": field mode: "REDIRCT" is not an interception mode, want REDIRECT, TPROXY or NONE`},
		{`{"excludeInboundPorts":[0],"proxyUIDs":[0]}`, `field excludeInboundPorts: 0 is not a port, want 1 to 65535; field proxyUIDs: 0 would leave`},
		{`{"mode":"REDIRECT","ports":[1]}`, `upgrade weft-cni`},
		{``, `annotation weft.dev/redirect: value "": empty, want a JSON object`},
	} {
		pod := n.pod("cart", map[string]string{redirect.Annotation: c.value})
		_, err := n.add(l, pod)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("annotation %q: ADD says %v, want one line with %s", c.value, err, c.want)
		}
		var e *types.Error
		if !errors.As(err, &e) || e.Code != cni.CodeBadAnnotation {
			t.Errorf("annotation %q: error code of %v, want %d", c.value, err, cni.CodeBadAnnotation)
		}
		if got := n.records(); len(got) != 0 {
			t.Errorf("a failed ADD left %q", got)
		}
		if err := n.del(l, pod); err != nil {
			t.Errorf("DEL after a failed ADD: %v", err)
		}
	}
}

func TestCheckSeesThatRulesWereLost(t *testing.T) {
	n := newNode(t)
	l := n.chain("1.1.0", nil)
	pod := n.pod("cart", injected(redirect.Default()))
	n.mustAdd(l, pod)
	b, err := redirect.Open(redirect.NFTables)
	if err != nil {
		t.Fatal(err)
	}
	pod.Do(func() { err = b.Remove() })
	if err != nil {
		t.Fatal(err)
	}
	err = n.check(l, pod)
	var e *types.Error
	if !errors.As(err, &e) || e.Code != cni.CodeDrift || !strings.Contains(err.Error(), "pod shop/cart") || !strings.Contains(err.Error(), "nothing is captured") {
		t.Errorf("CHECK after the table was deleted: %v", err)
	}
	// Also when the record of ADD was lost.
	if err := os.RemoveAll(n.stateDir()); err != nil {
		t.Fatal(err)
	}
	if err := n.check(l, pod); !errors.As(err, &e) || e.Code != cni.CodeDrift {
		t.Errorf("CHECK without a record: %v", err)
	}
	n.mustAdd(n.conflist("1.1.0", json.RawMessage(l.Plugins[2].Bytes)), pod)
	if err := n.check(n.conflist("1.1.0", json.RawMessage(l.Plugins[2].Bytes)), pod); err != nil {
		t.Errorf("CHECK after another ADD: %v", err)
	}
}

func TestARuntimeThatPassesNoAnnotationsNeverLetsAnInjectedPodPass(t *testing.T) {
	n := newNode(t)
	unaware := func(name string) sandbox {
		s := n.pod(name, nil)
		s.args.CapabilityArgs = nil
		return s
	}
	t.Run("no agent", func(t *testing.T) {
		_, err := n.add(n.chain("1.1.0", nil), unaware("cart"))
		var e *types.Error
		if !errors.As(err, &e) || e.Code != cni.CodeUnknownPod || !strings.Contains(err.Error(), "passed no pod annotations") || !strings.Contains(err.Error(), "excludeNamespaces") {
			t.Errorf("ADD: %v, want a refusal that says what to do", err)
		}
	})
	t.Run("excluded namespace", func(t *testing.T) {
		pod := unaware("dns")
		n.mustAdd(n.chain("1.1.0", map[string]any{"excludeNamespaces": []string{"kube-system", "shop"}}), pod)
		if drift := pod.rules(t, nothing()); len(drift) > 0 {
			t.Errorf("rules in an excluded namespace: %q", drift)
		}
	})
	t.Run("not Kubernetes", func(t *testing.T) {
		pod := unaware("podman")
		pod.args.Args = nil
		n.mustAdd(n.chain("1.1.0", nil), pod)
	})
	agent := filepath.Join(n.dir, "agent.sock")
	withAgent := n.chain("1.1.0", map[string]any{"agentSocket": agent, "capabilities": nil})
	t.Run("agent is down", func(t *testing.T) {
		_, err := n.add(withAgent, unaware("cart"))
		var e *types.Error
		if !errors.As(err, &e) || e.Code != types.ErrTryAgainLater || !strings.Contains(err.Error(), "node agent") {
			t.Errorf("ADD: %v, want a refusal that kubelet tries again", err)
		}
	})
	answers := map[string]string{
		"cart":    mustJSON(map[string]string{"redirect": redirect.Default().Encode()}),
		"plain":   `{"redirect":null}`,
		"unknown": `{"error":"pod shop/unknown is not in the cache yet"}`,
		"silent":  `{}`,
		"broken":  `redirect: yes`,
	}
	asked := listen(t, agent, answers)
	t.Run("agent says injected", func(t *testing.T) {
		pod := unaware("cart")
		n.mustAdd(withAgent, pod)
		if drift := pod.rules(t, redirect.Default()); len(drift) > 0 {
			t.Errorf("rules: %q", drift)
		}
		want := fmt.Sprintf(`{"namespace":"shop","name":"cart","uid":"uid-cart","containerID":%q,"netns":%q}`, pod.args.ContainerID, pod.Path)
		if got := strings.TrimSpace(<-asked); got != want {
			t.Errorf("the agent was asked %s, want %s", got, want)
		}
		if err := n.check(withAgent, pod); err != nil {
			t.Errorf("CHECK, which asks nobody: %v", err)
		}
	})
	t.Run("agent says not injected", func(t *testing.T) {
		pod := unaware("plain")
		n.mustAdd(withAgent, pod)
		if drift := pod.rules(t, nothing()); len(drift) > 0 {
			t.Errorf("rules: %q", drift)
		}
	})
	for _, name := range []string{"unknown", "silent", "broken", "no answer at all"} {
		t.Run("agent is "+name, func(t *testing.T) {
			pod := unaware(strings.Fields(name)[0])
			if _, err := n.add(withAgent, pod); err == nil {
				t.Error("ADD succeeded although nobody knows whether the pod is injected")
			}
			if drift := pod.rules(t, nothing()); len(drift) > 0 {
				t.Errorf("rules: %q", drift)
			}
		})
	}
}

func TestTheAgentIsToldOfAPodWhoseStartWaitsForItsProxy(t *testing.T) {
	n := newNode(t)
	spec := redirect.Default()
	spec.Gate = redirect.PortHealth
	agent := filepath.Join(n.dir, "agent.sock")
	chain := n.chain("1.1.0", map[string]any{"agentSocket": agent})
	redirected := func(t *testing.T, name string) sandbox {
		pod := n.pod(name, injected(spec))
		n.mustAdd(chain, pod)
		if drift := pod.rules(t, spec); len(drift) > 0 {
			t.Errorf("rules: %q", drift)
		}
		return pod
	}
	t.Run("agent is down", func(t *testing.T) { redirected(t, "cart") })
	answers := map[string]string{"cart": `{"redirect":null}`, "refused": `{"error":"no such namespace"}`, "broken": "what?"}
	asked := listen(t, agent, answers)
	for name := range answers {
		t.Run("agent knows "+name, func(t *testing.T) {
			pod := redirected(t, name)
			want := fmt.Sprintf(`{"namespace":"shop","name":%q,"uid":"uid-%s","containerID":%q,"netns":%q,"gate":15021}`, name, name, pod.args.ContainerID, pod.Path)
			if got := strings.TrimSpace(<-asked); got != want {
				t.Errorf("the agent was told %s, want %s", got, want)
			}
		})
	}
	t.Run("no gate", func(t *testing.T) {
		n.mustAdd(chain, n.pod("plain", injected(redirect.Default())))
		select {
		case line := <-asked:
			t.Errorf("the agent was told %s", line)
		default:
		}
	})
}

// listen is a node agent: one line in, one line out, by the pod's name; no answer has none. It tells what it was asked.
func listen(t *testing.T, socket string, answers map[string]string) <-chan string {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	asked := make(chan string, 16)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			line, _ := bufio.NewReader(c).ReadString('\n')
			var q struct{ Name string }
			text := ""
			if err := json.Unmarshal([]byte(line), &q); err != nil {
				text = err.Error()
			} else {
				asked <- line
				text = answers[q.Name]
			}
			if text != "" {
				fmt.Fprintln(c, text)
			}
			c.Close()
		}
	}()
	return asked
}

func TestDelSucceedsWhateverIsLeft(t *testing.T) {
	n := newNode(t)
	l := n.conflist("1.1.0", json.RawMessage(n.chain("1.1.0", nil).Plugins[2].Bytes))
	pod := n.pod("cart", injected(redirect.Default()))
	if err := n.del(l, pod); err != nil {
		t.Errorf("DEL without ADD: %v", err)
	}
	n.mustAdd(l, pod)
	gone := pod
	gone.args = &libcni.RuntimeConf{ContainerID: pod.args.ContainerID, IfName: "eth0", Args: pod.args.Args}
	if err := n.del(l, gone); err != nil {
		t.Errorf("DEL without a namespace: %v", err)
	}
	if got := n.records(); len(got) != 0 {
		t.Errorf("remembered after DEL: %q", got)
	}
	n.mustAdd(l, pod)
	gone.args.NetNS = "/run/netns/does-not-exist"
	if err := n.del(l, gone); err != nil {
		t.Errorf("DEL with a namespace that is gone: %v", err)
	}
	// A record that a crash or a full disk has spoilt.
	n.mustAdd(l, pod)
	if err := os.WriteFile(filepath.Join(n.stateDir(), "pods", pod.args.ContainerID+":eth0"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.del(l, pod); err != nil {
		t.Errorf("DEL with a broken record: %v", err)
	}
	if got := n.records(); len(got) != 0 {
		t.Errorf("remembered after DEL: %q", got)
	}
}

func TestDelNeverTakesTheRulesOfAnotherAttachment(t *testing.T) {
	n := newNode(t)
	l := n.conflist("1.1.0", json.RawMessage(n.chain("1.1.0", nil).Plugins[2].Bytes))
	pod := n.pod("cart", injected(redirect.Default()))
	n.mustAdd(l, pod)
	second := sandbox{pod.NS, &libcni.RuntimeConf{}}
	*second.args = *pod.args
	second.args.IfName = "net1"
	n.mustAdd(l, second)
	if err := n.del(l, second); err != nil {
		t.Fatal(err)
	}
	if drift := pod.rules(t, redirect.Default()); len(drift) > 0 {
		t.Errorf("rules after DEL of the second interface: %q", drift)
	}
	// The path in a stale record may have come to mean the namespace of another pod.
	stale := filepath.Join(n.stateDir(), "pods", "old:eth0")
	if err := os.WriteFile(stale, []byte(mustJSON(map[string]any{"netns": pod.Path, "inode": 1, "spec": redirect.Default().Encode()})), 0o600); err != nil {
		t.Fatal(err)
	}
	n.gc(l, types.GCAttachment{ContainerID: pod.args.ContainerID, IfName: "eth0"})
	if drift := pod.rules(t, redirect.Default()); len(drift) > 0 {
		t.Errorf("rules after GC of a stale record: %q", drift)
	}
}

func (n *node) gc(l *libcni.NetworkConfigList, valid ...types.GCAttachment) {
	n.t.Helper()
	var err error
	n.Do(func() {
		err = n.runtime().GCNetworkList(context.Background(), l, &libcni.GCArgs{ValidAttachments: valid})
	})
	if err != nil {
		n.t.Errorf("GC: %v", err)
	}
}

func TestGarbageCollectionForgetsWhatTheRuntimeDoesNotKnow(t *testing.T) {
	n := newNode(t)
	l := n.conflist("1.1.0", json.RawMessage(n.chain("1.1.0", nil).Plugins[2].Bytes))
	kept, lost := n.pod("kept", injected(redirect.Default())), n.pod("lost", injected(redirect.Default()))
	n.mustAdd(l, kept)
	n.mustAdd(l, lost)
	// libcni calls DEL for cached attachments that are not valid; the plugin has to do without that, as after a lost cache.
	if err := os.RemoveAll(filepath.Join(n.dir, "cache")); err != nil {
		t.Fatal(err)
	}
	n.gc(l, types.GCAttachment{ContainerID: kept.args.ContainerID, IfName: "eth0"})
	if got := n.records(); len(got) != 1 || got[0] != kept.args.ContainerID+":eth0" {
		t.Errorf("remembered after GC: %q", got)
	}
	if drift := kept.rules(t, redirect.Default()); len(drift) > 0 {
		t.Errorf("rules of the valid attachment: %q", drift)
	}
	if drift := lost.rules(t, nothing()); len(drift) > 0 {
		t.Errorf("rules of the lost attachment: %q", drift)
	}
}

func TestStatusSaysWhyTheNodeIsNotReady(t *testing.T) {
	n := newNode(t)
	status := func(weft map[string]any) (err error) {
		l := n.conflist("1.1.0", json.RawMessage(n.chain("1.1.0", weft).Plugins[2].Bytes))
		n.Do(func() { err = n.runtime().GetStatusNetworkList(context.Background(), l) })
		return err
	}
	if err := status(nil); err != nil {
		t.Errorf("STATUS of a good node: %v", err)
	}
	if err := status(map[string]any{"capabilities": nil}); err == nil || !strings.Contains(err.Error(), "asks for no capability") {
		t.Errorf("STATUS without a source of annotations: %v", err)
	}
	if err := status(map[string]any{"capabilities": nil, "agentSocket": "/nonexistent/agent"}); err == nil || !strings.Contains(err.Error(), "agent does not answer") {
		t.Errorf("STATUS with a dead agent: %v", err)
	}
	file := filepath.Join(n.dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := status(map[string]any{"stateDir": filepath.Join(file, "x")}); err == nil || !strings.Contains(err.Error(), "stateDir") {
		t.Errorf("STATUS with an unusable state directory: %v", err)
	}
	if err := status(map[string]any{"backend": "iptables"}); err == nil {
		t.Log("iptables is installed here")
	} else if !strings.Contains(err.Error(), "iptables") {
		t.Errorf("STATUS with iptables but none installed: %v", err)
	}
}

func TestAConfigurationMistakeIsNamed(t *testing.T) {
	n := newNode(t)
	for _, c := range []struct {
		weft map[string]any
		want string
	}{
		{map[string]any{"backend": "ipvs"}, `field backend: no redirect backend is called "ipvs"`},
		{map[string]any{"agentSocket": "agent.sock"}, `field agentSocket: "agent.sock" is not an absolute path`},
		{map[string]any{"stateDir": "state"}, `field stateDir: "state" is not an absolute path`},
		{map[string]any{"excludeNamespaces": "kube-system"}, `excludeNamespaces`},
	} {
		_, err := n.add(n.chain("1.1.0", c.weft), n.pod("cart", nil))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: ADD says %v, want %s", c.weft, err, c.want)
		}
	}
}

func TestHostPortsStillWorkInFrontOfARedirectedPod(t *testing.T) {
	kit.Netfilter(t) // portmap writes its rules with iptables or nft
	n := newNode(t)
	l := n.chain("1.0.0", nil)
	pod := n.pod("web", injected(redirect.Default()))
	pod.args.CapabilityArgs["portMappings"] = []map[string]any{{"hostPort": 18080, "containerPort": 8080, "protocol": "tcp"}}
	n.mustAdd(l, pod)
	var lis net.Listener
	var err error
	pod.Do(func() { lis, err = net.Listen("tcp4", ":15006") })
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	go func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, "sidecar")
			c.Close()
		}
	}()
	var c net.Conn
	n.Do(func() { c, err = net.DialTimeout("tcp4", "10.66.0.1:18080", 5*time.Second) })
	if err != nil {
		t.Fatalf("host port: %v", err)
	}
	defer c.Close()
	buf := make([]byte, 16)
	k, _ := c.Read(buf)
	if string(buf[:k]) != "sidecar" {
		t.Errorf("the host port reached %q, want the sidecar", buf[:k])
	}
}

func TestThePluginTellsItsVersions(t *testing.T) {
	n := newNode(t)
	out, err := n.plugin("VERSION", n.pod("any", nil), `{"cniVersion":"1.1.0"}`)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		CNIVersion        string
		SupportedVersions []string
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if want := "[0.3.0 0.3.1 0.4.0 1.0.0 1.1.0]"; fmt.Sprint(got.SupportedVersions) != want {
		t.Errorf("supported versions %v, want %s", got.SupportedVersions, want)
	}
	if _, err := n.plugin("ADD", n.pod("any", nil), `{"cniVersion":"0.2.0","name":"pods"}`); err == nil {
		t.Error("ADD with a version that the plugin does not speak succeeded")
	}
}

func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}
