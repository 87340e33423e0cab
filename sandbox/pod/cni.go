package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	corev1 "k8s.io/api/core/v1"
)

// ifName is the pod's interface, by CRI's convention.
const ifName = "eth0"

// delTimeout bounds a CNI DEL, so that a plugin that hangs cannot keep a pod from ending.
const delTimeout = 30 * time.Second

// network runs the CNI chain for pods.
type network struct {
	lib  *libcni.CNIConfig
	list *libcni.NetworkConfigList
	dir  string // libcni's cache
}

func newNetwork(c CNI, root string) (*network, error) {
	list, err := libcni.NetworkConfFromBytes(c.Conflist)
	if err != nil {
		return nil, fmt.Errorf("CNI network configuration list: %w", err)
	}
	dir := c.CacheDir
	if dir == "" {
		dir = filepath.Join(root, "cni")
	}
	// A plugin's error goes to stdout by the protocol, and that is what is reported.
	run := &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: io.Discard}, PluginDecoder: version.PluginDecoder{}}
	return &network{lib: libcni.NewCNIConfigWithCacheDir(c.Path, dir, run), list: list, dir: dir}, nil
}

// conf is what a CRI runtime passes to plugins (CRI convention for CNI_ARGS; CNI conventions: portMappings;
// containerd and CRI-O: io.kubernetes.cri.pod-annotations).
func (n *network) conf(pod *corev1.Pod, s *sandbox) *libcni.RuntimeConf {
	annotations := pod.Annotations
	if annotations == nil {
		annotations = map[string]string{}
	}
	capabilities := map[string]any{"io.kubernetes.cri.pod-annotations": annotations}
	if ports := portMappings(pod); len(ports) > 0 {
		capabilities["portMappings"] = ports
	}
	return &libcni.RuntimeConf{
		ContainerID: s.id,
		NetNS:       s.netns,
		IfName:      ifName,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", pod.Namespace},
			{"K8S_POD_NAME", pod.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", s.id},
			{"K8S_POD_UID", string(pod.UID)},
		},
		CapabilityArgs: capabilities,
	}
}

type portMapping struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

func portMappings(pod *corev1.Pod) []portMapping {
	var out []portMapping
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		for _, p := range c.Ports {
			if p.HostPort == 0 {
				continue
			}
			protocol := strings.ToLower(string(p.Protocol))
			if protocol == "" {
				protocol = "tcp"
			}
			out = append(out, portMapping{p.HostPort, p.ContainerPort, protocol, p.HostIP})
		}
	}
	return out
}

// add connects a pod and returns its addresses, IPv4 first as containerd has it. The error's text is that of
// containerd, since people and tools look for it in events.
func (n *network) add(ctx context.Context, pod *corev1.Pod, s *sandbox) ([]netip.Addr, error) {
	failed := func(err error) error {
		return fmt.Errorf("failed to setup network for sandbox %q: %w", s.id, err)
	}
	result, err := n.lib.AddNetworkList(ctx, n.list, n.conf(pod, s))
	if err != nil {
		return nil, failed(err)
	}
	r, err := types100.NewResultFromResult(result)
	if err != nil {
		return nil, failed(err)
	}
	var ips []netip.Addr
	for _, c := range r.IPs {
		// Addresses of other interfaces (a bridge) have a sandbox other than the pod's.
		if c.Interface != nil && *c.Interface < len(r.Interfaces) && r.Interfaces[*c.Interface].Sandbox == "" {
			continue
		}
		if ip, ok := netip.AddrFromSlice(c.Address.IP); ok {
			ips = append(ips, ip.Unmap())
		}
	}
	if len(ips) == 0 {
		return nil, failed(errors.New("the CNI chain gave the pod no address"))
	}
	slices.SortStableFunc(ips, func(a, b netip.Addr) int {
		return b2i(a.Is6()) - b2i(b.Is6())
	})
	return ips, nil
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// del disconnects a pod; it may be called again, and after a failed add.
func (n *network) del(pod *corev1.Pod, s *sandbox) error {
	ctx, cancel := context.WithTimeout(context.Background(), delTimeout)
	defer cancel()
	return n.lib.DelNetworkList(ctx, n.list, n.conf(pod, s))
}

func (n *network) check(ctx context.Context, pod *corev1.Pod, s *sandbox) error {
	return n.lib.CheckNetworkList(ctx, n.list, n.conf(pod, s))
}

// clean disconnects everything in the cache: what a former run did not.
func (n *network) clean(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(n.dir, "results")); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	attachments, err := n.lib.GetCachedAttachments("")
	if err != nil {
		return fmt.Errorf("CNI cache: %w", err)
	}
	var errs []error
	for _, a := range attachments {
		ctx, cancel := context.WithTimeout(ctx, delTimeout)
		rt := &libcni.RuntimeConf{ContainerID: a.ContainerID, NetNS: a.NetNS, IfName: a.IfName, Args: a.CniArgs, CapabilityArgs: a.CapabilityArgs}
		// The chain may have changed since; what was added is deleted by what added it.
		list, err := libcni.NetworkConfFromBytes(a.Config)
		if err != nil {
			list = n.list
		}
		if err := n.lib.DelNetworkList(ctx, list, rt); err != nil {
			errs = append(errs, fmt.Errorf("CNI DEL of sandbox %s: %w", a.ContainerID, err))
		}
		cancel()
	}
	// An ADD that was interrupted is in no cache; plugins find its leftovers themselves (CNI spec 1.1: GC). Lists of
	// earlier versions have no such verb, which is no error.
	if err := n.lib.GCNetworkList(ctx, n.list, &libcni.GCArgs{}); err != nil {
		errs = append(errs, fmt.Errorf("CNI GC: %w", err))
	}
	return errors.Join(errs...)
}
