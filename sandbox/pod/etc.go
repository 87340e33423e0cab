package pod

import (
	"fmt"
	"os"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// etcFiles are the files of /etc that are made for each pod and shared by its containers.
var etcFiles = []string{"hosts", "resolv.conf", "hostname", "passwd", "group", "nsswitch.conf"}

// etc returns their contents, but for hosts, which needs the pod's address.
func (w *worker) etc() map[string]string {
	return map[string]string{
		"hosts":       "",
		"resolv.conf": w.resolvConf(),
		"hostname":    w.hostname() + "\n",
		"passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n" +
			"nonroot:x:65532:65532:nonroot:/home/nonroot:/usr/sbin/nologin\n",
		"group":         "root:x:0:\ntty:x:5:\nnobody:x:65534:\nnonroot:x:65532:\n",
		"nsswitch.conf": "hosts: files dns\n",
	}
}

// makeHosts writes /etc/hosts as kubelet does (kubelet: managedHostsFileContent).
func (w *worker) makeHosts() error {
	var b strings.Builder
	if w.pod.Spec.HostNetwork {
		host, err := os.ReadFile("/etc/hosts")
		if err != nil && !os.IsNotExist(err) {
			return err
		}
		b.WriteString("# Kubernetes-managed hosts file (host network).\n")
		b.Write(host)
	} else {
		b.WriteString("# Kubernetes-managed hosts file.\n")
		b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
		b.WriteString("fe00::\tip6-localnet\nfe00::\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
		name := w.hostname()
		if sub := w.pod.Spec.Subdomain; sub != "" {
			name = fmt.Sprintf("%s.%s.%s.svc.%s\t%s", name, sub, w.pod.Namespace, w.r.cfg.DNS.Domain, name)
		}
		for _, ip := range w.podIPs() {
			fmt.Fprintf(&b, "%s\t%s\n", ip, name)
		}
	}
	if len(w.pod.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
		for _, a := range w.pod.Spec.HostAliases {
			fmt.Fprintf(&b, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
		}
	}
	return os.WriteFile(w.dir("etc", "hosts"), []byte(b.String()), 0o644)
}

// resolvConf follows dnsPolicy and dnsConfig (kubelet: dns.Configurer).
func (w *worker) resolvConf() string {
	spec := &w.pod.Spec
	policy := spec.DNSPolicy
	if policy == "" {
		policy = corev1.DNSClusterFirst
	}
	if spec.HostNetwork && policy == corev1.DNSClusterFirst {
		// Kubernetes API: on the host's network ClusterFirst means Default, unless ClusterFirstWithHostNet is said.
		policy = corev1.DNSDefault
	}
	if !w.r.cfg.DNS.Server.IsValid() && policy != corev1.DNSNone {
		policy = corev1.DNSDefault
	}
	var servers, search, options []string
	switch policy {
	case corev1.DNSNone:
	case corev1.DNSDefault:
		servers, search, options = hostResolv()
	default:
		domain := w.r.cfg.DNS.Domain
		servers = []string{w.r.cfg.DNS.Server.String()}
		search = []string{w.pod.Namespace + ".svc." + domain, "svc." + domain, domain}
		// kubelet appends the host's search domains; the sandbox's server would only have to refuse them.
		options = []string{"ndots:5"}
	}
	if c := spec.DNSConfig; c != nil {
		servers = append(servers, c.Nameservers...)
		search = append(search, c.Searches...)
		for _, o := range c.Options {
			options = slices.DeleteFunc(options, func(s string) bool { return s == o.Name || strings.HasPrefix(s, o.Name+":") })
			if o.Value != nil {
				options = append(options, o.Name+":"+*o.Value)
			} else {
				options = append(options, o.Name)
			}
		}
	}
	var b strings.Builder
	if len(search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(unique(search), " "))
	}
	for _, s := range unique(servers) {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	}
	return b.String()
}

func unique(list []string) []string {
	var out []string
	for _, s := range list {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// hostResolv reads the host's resolver configuration (resolv.conf(5)).
func hostResolv() (servers, search, options []string) {
	data, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return nil, nil, nil
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			servers = append(servers, fields[1])
		case "search":
			search = fields[1:]
		case "options":
			options = fields[1:]
		}
	}
	return servers, search, options
}
