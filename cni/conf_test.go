package cni

import (
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/weft-mesh/weft/redirect"
)

func FuzzParseConf(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.1.0","name":"pods","type":"weft-cni","runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"weft.dev/redirect":"{}"}},"prevResult":{}}`), "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b")
	f.Add([]byte(`{"backend":"iptables","agentSocket":"/a","stateDir":"/b","excludeNamespaces":["x"],"cni.dev/valid-attachments":[{"containerID":"c","ifname":"e"}]}`), "K8S_POD_NAME=b")
	f.Add([]byte(`{"runtimeConfig":{"io.kubernetes.cri.pod-annotations":null},"prevResult":null}`), "")
	f.Fuzz(func(t *testing.T, stdin []byte, args string) {
		c, err := ParseConf(stdin)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "weft: ") {
				t.Fatalf("error %q does not say whose it is", err)
			}
			return
		}
		if c.AgentSocket != "" {
			c.AgentSocket = "/nonexistent/agent.sock"
		}
		p := parsePod(args)
		spec, injected, err := decide(c, p, &skel.CmdArgs{})
		if err != nil && injected {
			t.Fatal("both an error and a decision")
		}
		all, known, _ := c.annotations()
		if _, annotated := all[redirect.Annotation]; err == nil && !injected && p.name != "" && !c.excludes(p.namespace) && (!known || annotated) {
			t.Fatalf("a pod that is or may be injected was let pass: %s", stdin)
		}
		if injected {
			if err := spec.Validate(); err != nil {
				t.Fatalf("an invalid Spec was accepted: %v", err)
			}
		}
	})
}

func TestPodNamesAreReadFromCNIArgs(t *testing.T) {
	p := parsePod("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-1;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u-1")
	if p.String() != "shop/cart-1" || p.uid != "u-1" {
		t.Errorf("got %+v", p)
	}
	if p := parsePod(""); p.name != "" {
		t.Errorf("got %+v from nothing", p)
	}
}
