package node

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os/exec"
	"strings"
)

//go:embed manifests/calico.rules
var calicoRules string

// calico gives the node Calico's configuration list and Calico's rules. Calico itself cannot be built from its Go module, so ptp stands
// in for its plugin: what is proven is that the mesh's entry and rules work beside Calico's, not Calico.
func (c *cluster) calico(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, c.path("enter"), "iptables-restore", "--noflush", "--wait=10")
	cmd.Stdin = strings.NewReader(calicoRules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("load Calico's rules: %w: %s", err, bytes.TrimSpace(out))
	}
	c.step("Calico's rules loaded")
	// docs.tigera.io, "Configure the Calico CNI plugins": the name, the order and the chained plugins are Calico's.
	return c.writeConflist("10-calico.conflist", object{"name": "k8s-pod-network", "cniVersion": c.cniVersion(), "plugins": []any{
		object{"type": "ptp", "ipMasq": false, "mtu": 1450, "ipam": c.hostLocal(), "policy": object{"type": "k8s"}},
		object{"type": "portmap", "snat": true, "capabilities": object{"portMappings": true}},
		object{"type": "bandwidth", "capabilities": object{"bandwidth": true}},
	}})
}
