package cni

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weft-mesh/weft/redirect"
)

// CapabilityAnnotations is the capability by which containerd and CRI-O hand the pod's annotations to a plugin that asks for them.
const CapabilityAnnotations = "io.kubernetes.cri.pod-annotations"

// DefaultStateDir is where ADD remembers what CHECK, DEL and GC need. It must not survive a reboot, as network namespaces do not either.
const DefaultStateDir = "/run/weft/cni"

// Conf is the plugin's entry in a conflist:
//
//	{
//	  "type": "weft-cni",
//	  "capabilities": {"io.kubernetes.cri.pod-annotations": true},
//	  "backend": "auto",
//	  "excludeNamespaces": ["kube-system"],
//	  "agentSocket": "/run/weft/agent.sock"
//	}
//
// Fields that are not named here belong to the runtime or to nobody, and are ignored.
type Conf struct {
	// CNIVersion and Name are the conflist's; the runtime puts them in.
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`

	// Capabilities should ask for CapabilityAnnotations.
	Capabilities map[string]bool `json:"capabilities"`

	// Backend is how rules are written: "auto" (default), "nftables" or "iptables". See redirect.Open.
	Backend string `json:"backend"`

	// ExcludeNamespaces are Kubernetes namespaces whose pods are never redirected and never asked about. The node agent's own
	// namespace belongs here when AgentSocket is used, or else the agent could not start.
	ExcludeNamespaces []string `json:"excludeNamespaces"`

	// AgentSocket is the path of the node agent's unix socket. It is asked when the runtime passes no annotations, and told of pods whose start waits for
	// their proxy.
	AgentSocket string `json:"agentSocket"`

	// StateDir replaces DefaultStateDir.
	StateDir string `json:"stateDir"`

	// RuntimeConfig is what the runtime adds for the capabilities asked for.
	RuntimeConfig map[string]json.RawMessage `json:"runtimeConfig"`

	// PrevResult is the result of the plugin before this one, byte for byte.
	PrevResult json.RawMessage `json:"prevResult"`

	// ValidAttachments come with GC: everything else may go.
	ValidAttachments []types.GCAttachment `json:"cni.dev/valid-attachments"`
}

// ParseConf reads what the runtime writes to standard input and says which field is wrong.
func ParseConf(stdin []byte) (Conf, error) {
	c := Conf{StateDir: DefaultStateDir}
	if err := json.Unmarshal(stdin, &c); err != nil {
		return Conf{}, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("weft: network configuration: %v", err), "")
	}
	bad := func(field, format string, args ...any) (Conf, error) {
		return Conf{}, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("weft: network configuration %q: field %s: %s", c.Name, field, fmt.Sprintf(format, args...)), "")
	}
	if _, err := redirect.Open(c.Backend); err != nil {
		return bad("backend", "%v", err)
	}
	if c.AgentSocket != "" && !filepath.IsAbs(c.AgentSocket) {
		return bad("agentSocket", "%q is not an absolute path", c.AgentSocket)
	}
	if !filepath.IsAbs(c.StateDir) {
		return bad("stateDir", "%q is not an absolute path", c.StateDir)
	}
	if bytes.Equal(c.PrevResult, []byte("null")) {
		c.PrevResult = nil
	}
	return c, nil
}

// annotations gives the pod's annotations. known is false when the runtime passed none at all, which is something else than a pod
// without annotations.
func (c Conf) annotations() (all map[string]string, known bool, err error) {
	raw, known := c.RuntimeConfig[CapabilityAnnotations]
	if !known {
		return nil, false, nil
	}
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, true, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("weft: runtimeConfig[%q] is not an object of strings: %v", CapabilityAnnotations, err), "")
	}
	return all, true, nil
}

func (c Conf) excludes(namespace string) bool { return slices.Contains(c.ExcludeNamespaces, namespace) }

// backend is the redirect backend of the configuration, which ParseConf has checked.
func (c Conf) backend() redirect.Backend {
	b, err := redirect.Open(c.Backend)
	if err != nil {
		b, _ = redirect.Open(redirect.Auto)
	}
	return b
}
