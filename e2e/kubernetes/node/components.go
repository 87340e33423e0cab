package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Bins are the directories of the programs, under bin/ of the checkout.
type Bins struct {
	Kubernetes string // kube-apiserver, kubelet, ... etcd
	Containerd string // containerd, ctr, its shim, runc
	CNI        string // the reference plugins
	Netfilter  string // iptables and its libraries; empty: the machine's own
	Flanneld   string // of networks flannel-*
	Multus     string // directory of multus and its daemon, for network multus
}

// program says how a component is started.
func (c *cluster) program(name string) (Program, error) {
	p := Program{Name: name, Log: c.log(name), Env: c.environment()}
	kube := func(program string) string { return filepath.Join(c.bins.Kubernetes, program) }
	switch name {
	case "etcd":
		p.Args = []string{kube("etcd"), "--data-dir=" + c.path("etcd"), "--listen-client-urls=" + etcdURL, "--advertise-client-urls=" + etcdURL,
			"--listen-peer-urls=http://127.0.0.1:2380", "--logger=zap", "--log-level=warn",
			"--unsafe-no-fsync"} // a test's cluster need not survive a power cut
	case "kube-apiserver":
		p.Args = []string{kube(name), "--etcd-servers=" + etcdURL, "--advertise-address=" + NodeIP, "--secure-port=6443", "--allow-privileged", "--profiling=false",
			"--tls-cert-file=" + c.pki("apiserver.crt"), "--tls-private-key-file=" + c.pki("apiserver.key"), "--client-ca-file=" + c.pki("ca.crt"),
			"--kubelet-client-certificate=" + c.pki("apiserver-kubelet-client.crt"), "--kubelet-client-key=" + c.pki("apiserver-kubelet-client.key"),
			"--kubelet-certificate-authority=" + c.pki("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
			"--token-auth-file=" + c.pki("tokens.csv"), "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
			"--service-cluster-ip-range=" + c.serviceCIDRs(), "--service-account-issuer=" + Issuer,
			"--service-account-key-file=" + c.pki("service-accounts.key"), "--service-account-signing-key-file=" + c.pki("service-accounts.key")}
	case "kube-controller-manager":
		// An API server that was away for longer than the grace period (50 s) comes back to a node that has not reported since: Kubernetes calls all its
		// pods unready until it does, and every Service is without endpoints, with a mesh and without one. Tests of outages are not about that.
		p.Args = []string{kube(name), "--kubeconfig=" + c.pki(name+".kubeconfig"), "--use-service-account-credentials", "--leader-elect=false", "--bind-address=127.0.0.1",
			"--service-account-private-key-file=" + c.pki("service-accounts.key"), "--root-ca-file=" + c.pki("ca.crt"),
			"--cluster-signing-cert-file=" + c.pki("ca.crt"), "--cluster-signing-key-file=" + c.pki("ca.key"),
			"--flex-volume-plugin-dir=/var/lib/kubelet/volumeplugins", "--node-monitor-grace-period=5m",
			"--allocate-node-cidrs", "--cluster-cidr=" + c.podCIDRs(), "--service-cluster-ip-range=" + c.serviceCIDRs()}
	case "kube-scheduler":
		p.Args = []string{kube(name), "--kubeconfig=" + c.pki(name+".kubeconfig"), "--leader-elect=false", "--bind-address=127.0.0.1"}
	case "kube-proxy":
		p.Args = []string{kube(name), "--kubeconfig=" + c.pki(name+".kubeconfig"), "--hostname-override=" + NodeName, "--proxy-mode=" + c.ProxyMode, "--cluster-cidr=" + c.podCIDRs(),
			// The machine's limits are not the node's to change.
			"--conntrack-max-per-core=0", "--conntrack-min=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0"}
	case "kubelet":
		p.Args = []string{kube(name), "--config=" + c.path("kubelet.yaml"), "--kubeconfig=" + c.pki(name+".kubeconfig"), "--node-ip=" + c.nodeIPs(), "--hostname-override=" + NodeName}
		if err := os.WriteFile(c.path("kubelet.yaml"), []byte(c.kubeletConfig()), 0o644); err != nil {
			return p, err
		}
		// Pods with dnsPolicy Default: there is nobody to ask outside.
		if err := os.WriteFile(c.path("resolv.conf"), []byte("nameserver "+DNSIP+"\n"), 0o644); err != nil {
			return p, err
		}
	case "containerd":
		p.Args = []string{filepath.Join(c.bins.Containerd, "containerd"), "--config=" + c.path("containerd.toml")}
		if err := os.WriteFile(c.path("containerd.toml"), []byte(c.containerdConfig()), 0o644); err != nil {
			return p, err
		}
	case "flanneld":
		p.Env = append(p.Env, "NODE_NAME="+NodeName)
		p.Args = []string{c.bins.Flanneld, "--kube-subnet-mgr", "--kubeconfig-file=" + c.pki("flannel.kubeconfig"), "--iface=node0",
			"--net-config-path=/run/flannel/net-conf.json", "--subnet-file=/run/flannel/subnet.env"}
	case "multus":
		// It puts every host into brackets, which Go takes around IPv6 addresses only: the same address, written as one of those.
		p.Env = append(p.Env, "KUBERNETES_SERVICE_HOST=::ffff:"+NodeIP, "KUBERNETES_SERVICE_PORT=6443")
		p.Args = []string{filepath.Join(c.bins.Multus, "thin_entrypoint"), "--multus-bin-file=" + filepath.Join(c.bins.Multus, "multus"),
			"--cni-bin-dir=" + cniBinDir, "--cni-conf-dir=" + cniConfDir, "--multus-autoconfig-dir=" + cniConfDir, "--multus-cni-conf-dir=/etc/cni/multus/net.d",
			"--multus-conf-file=auto", "--cleanup-config-on-exit"} // which also makes it watch
	default:
		return p, fmt.Errorf("no component %s", name)
	}
	return p, nil
}

// environment of everything on the node. The shim and the runc that belong to this containerd come first.
func (c *cluster) environment() []string {
	path := c.bins.Containerd + ":" + c.bins.Kubernetes
	env := []string{"HOME=/root"}
	if n := c.bins.Netfilter; n != "" {
		path += ":" + filepath.Join(n, "sbin")
		env = append(env, "LD_LIBRARY_PATH="+filepath.Join(n, "lib"), "XTABLES_LIBDIR="+filepath.Join(n, "xtables"))
	}
	return append(env, "PATH="+path+":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}

// kubeletConfig is block YAML: a file that begins with a brace is read as JSON.
func (c *cluster) kubeletConfig() string {
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupRoot: /weft-%s
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
localStorageCapacityIsolation: false
containerRuntimeEndpoint: unix://%s
resolvConf: %s
volumePluginDir: /var/lib/kubelet/volumeplugins
clusterDomain: cluster.local
clusterDNS: [%s]
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: %s}
authorization: {mode: Webhook}
tlsCertFile: %s
tlsPrivateKeyFile: %s
# The disk is the machine's: that it is full is not this node's to mend, and the images cannot be pulled again.
evictionHard: {memory.available: 100Mi}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
`, c.Name, containerdSocket, c.path("resolv.conf"), DNSIP, c.pki("ca.crt"), c.pki("kubelet.crt"), c.pki("kubelet.key"))
}

// containerdConfig leaves all paths at containerd's defaults. Snapshotters and plugins that need what is not there are off.
func (c *cluster) containerdConfig() string {
	runc := filepath.Join(c.bins.Containerd, "runc")
	if !c.v2() {
		return fmt.Sprintf(`version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[plugins."io.containerd.grpc.v1.cri"]
restrict_oom_score_adj = true
sandbox_image = %q
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = %q
conf_dir = %q
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = %q
`, pauseImage, cniBinDir, cniConfDir, runc)
	}
	return fmt.Sprintf(`version = 3
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.erofs", "io.containerd.nri.v1.nri"]
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = %q
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = [%q]
conf_dir = %q
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = %q
`, pauseImage, cniBinDir, cniConfDir, runc)
}

const (
	// Issuer of service account tokens.
	Issuer  = "https://kubernetes.default.svc.cluster.local"
	etcdURL = "http://127.0.0.1:2379"
)

// lastLines is the end of a component's log, for an error's text.
func (l layout) lastLines(component string, n int) string {
	b, err := os.ReadFile(l.log(component))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
