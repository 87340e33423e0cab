package node

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

//go:embed manifests/flannel.yaml
var flannelManifest string

// flannel starts flanneld and writes the configuration that Flannel's own plugin would make of what flanneld found out.
func (c *cluster) flannel(ctx context.Context) error {
	if err := c.kubectl(ctx, flannelManifest, "apply", "--server-side", "-f", "-"); err != nil {
		return err
	}
	config := object{"Network": podCIDR, "EnableNFTables": c.ProxyMode == "nftables", "Backend": object{"Type": strings.TrimPrefix(c.Network, "flannel-")}}
	if c.DualStack {
		config["EnableIPv6"], config["IPv6Network"] = true, podCIDR6
	}
	b, err := json.Marshal(config)
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.path("flannel", "net-conf.json"), b, 0o644); err != nil {
		return err
	}
	// flanneld ends when the node has no addresses for its pods yet.
	if err := c.wait(ctx, "kube-controller-manager", func(ctx context.Context) error {
		out, err := c.output(ctx, "get", "node", NodeName, "-o", "jsonpath={.spec.podCIDR}")
		if err == nil && out == "" {
			err = fmt.Errorf("node %s has no podCIDR", NodeName)
		}
		return err
	}); err != nil {
		return err
	}
	if err := os.RemoveAll(c.path("flannel", "subnet.env")); err != nil { // of an earlier life
		return err
	}
	if err := c.start(ctx, "flanneld"); err != nil {
		return err
	}
	var found map[string]string
	if err := c.wait(ctx, "flanneld", func(context.Context) error {
		found, err = readEnv(c.path("flannel", "subnet.env"))
		return err
	}); err != nil {
		return err
	}
	list, err := flannelConflist(found, c.cniVersion())
	if err != nil {
		return err
	}
	c.step("flanneld: %s, subnet %s", c.Network, found["FLANNEL_SUBNET"])
	return c.writeConflist("10-flannel.conflist", list)
}

// flannelConflist is what Flannel's plugin asks the bridge plugin for (its source: delegateAdd), with flanneld's subnet.env.
func flannelConflist(env map[string]string, version string) (object, error) {
	mtu, err := strconv.Atoi(env["FLANNEL_MTU"])
	if err != nil {
		return nil, fmt.Errorf("subnet.env: FLANNEL_MTU=%q", env["FLANNEL_MTU"])
	}
	var ranges, routes []any
	for _, family := range []string{"FLANNEL_", "FLANNEL_IPV6_"} {
		if env[family+"SUBNET"] == "" {
			continue
		}
		subnet, err := netip.ParsePrefix(env[family+"SUBNET"])
		if err != nil {
			return nil, fmt.Errorf("subnet.env: %w", err)
		}
		// flanneld names the bridge's address; host-local refuses a subnet with host bits.
		ranges = append(ranges, []any{object{"subnet": subnet.Masked().String()}})
		routes = append(routes, object{"dst": env[family+"NETWORK"]})
	}
	return object{"cniVersion": version, "name": "cbr0", "plugins": []any{
		object{"type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true, "hairpinMode": true,
			"ipMasq": env["FLANNEL_IPMASQ"] != "true", "mtu": mtu,
			"ipam": object{"type": "host-local", "ranges": ranges, "routes": routes}},
		object{"type": "portmap", "capabilities": object{"portMappings": true}},
	}}, nil
}

// readEnv reads a file of KEY=VALUE lines.
func readEnv(path string) (map[string]string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	env := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			env[key] = value
		}
	}
	return env, nil
}
