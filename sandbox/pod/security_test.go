package pod

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/e2e/kit"
)

func TestRestrictedContainerHasNoPrivilegesAndNoWritableRoot(t *testing.T) {
	n := newNode(t, nil)
	pod := n.start(`
spec:
  securityContext: {supplementalGroups: [2001], fsGroup: 2002, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: app
    image: sh
    args: [-c, "cat /proc/self/status; exec sleep 1000"]
    securityContext:
      runAsUser: 1337
      runAsGroup: 1338
      runAsNonRoot: true
      readOnlyRootFilesystem: true
      allowPrivilegeEscalation: false
      capabilities: {drop: [ALL]}
    volumeMounts: [{name: work, mountPath: /scratch}]
  - name: plain
    image: sh
    args: [-c, "exec sleep 1000"]
  volumes: [{name: work, emptyDir: {}}]
`)
	n.until(pod, "ready", ready)
	var status string
	eventually(t, "the log", func() bool {
		status = n.logs(pod, "app", LogOptions{})
		return strings.Contains(status, "nonvoluntary_ctxt_switches")
	})
	for _, want := range []string{
		"Uid:\t1337\t1337\t1337\t1337", "Gid:\t1338\t1338\t1338\t1338", "Groups:\t1338 2001 2002", "NoNewPrivs:\t1",
		"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "CapAmb:\t0000000000000000",
	} {
		if !strings.Contains(status, want) {
			t.Errorf("/proc/self/status has no %q:\n%s", want, status)
		}
	}
	equal(t, "writing to the root", n.sh(pod, "app", "touch /tmp/x /x /etc/x /etc/hosts 2>/dev/null || echo refused"), "refused")
	equal(t, "writing to a volume", n.sh(pod, "app", "echo ok > /scratch/x && cat /scratch/x"), "ok")
	equal(t, "group of files in a volume with fsGroup", n.sh(pod, "app", "stat -c %g /scratch/x"), "2002")
	equal(t, "writing to the termination log", n.sh(pod, "app", "echo bye > /dev/termination-log && echo ok"), "ok")
	equal(t, "opening the own output anew", n.sh(pod, "app", "echo ok > /dev/stdout"), "ok")
	equal(t, "exec has the container's user", n.sh(pod, "app", "id -u; id -g; id -G"), "1337\n1338\n1338 2001 2002")
	equal(t, "exec has the container's capabilities", n.sh(pod, "app", "grep -c 'Cap...:.0000000000000000' /proc/self/status"), "5")
	equal(t, "exec cannot gain privileges", n.sh(pod, "app", "grep NoNewPrivs /proc/self/status"), "NoNewPrivs:\t1")
	equal(t, "a port below 1024 without privileges", n.sh(pod, "app", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start"), "0")

	// A container that says nothing is root with containerd's capabilities, and no more.
	equal(t, "capabilities by default", n.sh(pod, "plain", "grep CapEff /proc/self/status"), "CapEff:\t00000000a80425fb")
	equal(t, "bounding set by default", n.sh(pod, "plain", "grep CapBnd /proc/self/status"), "CapBnd:\t00000000a80425fb")
	equal(t, "its root is writable", n.sh(pod, "plain", "echo ok > /x && cat /x"), "ok")
	equal(t, "the host's programs are not", n.sh(pod, "plain", "touch /usr/x 2>/dev/null || echo refused"), "refused")
	equal(t, "kernel parameters are not", n.sh(pod, "plain", "(echo 1 > /proc/sys/net/ipv4/ip_forward) 2>/dev/null || echo refused"), "refused")
	equal(t, "mounting is not allowed", n.sh(pod, "plain", "mount -t tmpfs x /mnt 2>/dev/null || echo refused"), "refused")
	equal(t, "reading the machine's memory", n.sh(pod, "plain", "head -c 1 /proc/kcore 2>/dev/null | wc -c"), "0")
}

func TestContainerSeesItselfOnly(t *testing.T) {
	n := newNode(t, nil)
	pod := n.start(`
spec:
  hostname: box
  hostAliases: [{ip: 10.9.9.9, hostnames: [db, db.local]}]
  dnsConfig: {options: [{name: ndots, value: "2"}, {name: edns0}], searches: [extra.example]}
  containers:
  - {name: app, image: sh, args: [-c, "exec sleep 1000"]}
`)
	s := n.until(pod, "ready", ready)
	eventually(t, "PID 1 has become sleep", func() bool { return n.sh(pod, "app", "tr '\\0' ' ' < /proc/1/cmdline") == "sleep 1000" })
	equal(t, "processes", n.sh(pod, "app", "set -- /proc/[0-9]*; echo $#"), "2")
	equal(t, "hostname", n.sh(pod, "app", "hostname; cat /etc/hostname"), "box\nbox")
	equal(t, "interfaces", n.sh(pod, "app", "ls /sys/class/net | sort"), "eth0\nlo")
	equal(t, "resolver", n.sh(pod, "app", "cat /etc/resolv.conf"),
		"search default.svc.cluster.local svc.cluster.local cluster.local extra.example\nnameserver 10.96.0.10\noptions ndots:2 edns0")
	hosts := n.sh(pod, "app", "cat /etc/hosts")
	for _, want := range []string{"127.0.0.1\tlocalhost", s.PodIP + "\tbox", "10.9.9.9\tdb\tdb.local"} {
		if !strings.Contains(hosts, want) {
			t.Errorf("/etc/hosts has no %q:\n%s", want, hosts)
		}
	}
	equal(t, "mounts of the host", n.sh(pod, "app", "grep -c "+n.cfg.Root+"/netns /proc/self/mountinfo || true"), "0")
	equal(t, "home", n.sh(pod, "app", "echo $HOME $HOSTNAME; ls /home /root /tmp | wc -w"), "/root box\n3")
	equal(t, "devices", n.sh(pod, "app", "echo x > /dev/null; head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c; ls /dev/shm 2>/dev/null || echo no shm"), "4\n4\nno shm")
}

func TestContainersDoNotInheritTheShellsUmaskAndFileLimit(t *testing.T) {
	kit.Root(t)
	limit := unix.Rlimit{}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	low := unix.Rlimit{Cur: 1000, Max: limit.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) }()
	unix.Umask(0o077)
	n := newNode(t, nil)
	n.setConfigMap("settings", map[string]string{"a": "A"})
	pod := n.start(`
spec:
  containers:
  - name: app
    image: sh
    args: [-c, "exec sleep 1000"]
    securityContext: {runAsUser: 1337}
    volumeMounts: [{name: v, mountPath: /deep/er/v}]
  volumes: [{name: v, configMap: {name: settings}}]
`)
	n.until(pod, "ready", ready)
	equal(t, "limit and umask", n.sh(pod, "app", "ulimit -n; umask"), fmt.Sprintf("%d\n0022", limit.Max))
	equal(t, "files", n.sh(pod, "app", "cat /deep/er/v/a; head -1 /etc/hosts"), "A# Kubernetes-managed hosts file.")
}

func TestProcessesAreSharedWhenThePodSaysSo(t *testing.T) {
	n := newNode(t, nil)
	pod := n.start(`
spec:
  shareProcessNamespace: true
  containers:
  - {name: a, image: sh, args: [-c, "exec sleep 1001"]}
  - {name: b, image: sh, args: [-c, "exec sleep 1002"]}
`)
	n.until(pod, "ready", ready)
	seen := n.sh(pod, "a", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
	for _, want := range []string{"sleep 1001", "sleep 1002", "weft-container"} {
		if !strings.Contains(seen, want) {
			t.Errorf("container a does not see %q: %s", want, seen)
		}
	}
	pid := n.sh(pod, "a", "grep -la '^sleep.1002' /proc/[0-9]*/cmdline | cut -d/ -f3")
	n.sh(pod, "a", "kill -TERM "+pid)
	n.until(pod, "restart of b", func(s corev1.PodStatus) bool { return s.ContainerStatuses[1].RestartCount == 1 })
}

func TestRootIsRefusedWhereNonRootIsDemanded(t *testing.T) {
	n := newNode(t, nil)
	for name, want := range map[string]string{
		"runAsNonRoot: true":               "container has runAsNonRoot and image will run as root",
		"runAsNonRoot: true, runAsUser: 0": "container's runAsUser breaks non-root policy",
	} {
		pod := n.start(`{metadata: {name: p` + strconv.Itoa(len(name)) + `}, spec: {containers: [{name: app, image: sh, securityContext: {` + name + `}}]}}`)
		s := n.until(pod, "refusal", func(s corev1.PodStatus) bool {
			return len(s.ContainerStatuses) > 0 && s.ContainerStatuses[0].State.Waiting != nil && s.ContainerStatuses[0].State.Waiting.Reason == "CreateContainerConfigError"
		})
		if message := s.ContainerStatuses[0].State.Waiting.Message; !strings.Contains(message, want) {
			t.Errorf("%s: message %q, want %q", name, message, want)
		}
	}
}

func TestCapabilitiesAfterDropAndAdd(t *testing.T) {
	for name, c := range map[string]struct {
		drop, add []corev1.Capability
		want      uint64
		err       string
	}{
		"default":            {want: 0xa80425fb},
		"drop all":           {drop: []corev1.Capability{"ALL"}},
		"drop all, add one":  {drop: []corev1.Capability{"all"}, add: []corev1.Capability{"NET_BIND_SERVICE"}, want: 1 << 10},
		"with prefix":        {drop: []corev1.Capability{"ALL"}, add: []corev1.Capability{"CAP_NET_ADMIN"}, want: 1 << 12},
		"drop one":           {drop: []corev1.Capability{"NET_RAW"}, want: 0xa80425fb &^ (1 << 13)},
		"add all":            {add: []corev1.Capability{"ALL"}, want: allCapabilities},
		"add all, drop one":  {add: []corev1.Capability{"ALL"}, drop: []corev1.Capability{"SYS_ADMIN"}, want: allCapabilities &^ (1 << 21)},
		"unknown":            {add: []corev1.Capability{"FLY"}, err: `securityContext.capabilities.add: unknown capability "FLY"`},
		"unknown in dropped": {drop: []corev1.Capability{"FLY"}, err: `securityContext.capabilities.drop: unknown capability "FLY"`},
	} {
		got, err := capabilities(&corev1.Capabilities{Drop: c.drop, Add: c.add})
		if (err != nil || c.err != "") && (err == nil || err.Error() != c.err) {
			t.Errorf("%s: error %v, want %q", name, err, c.err)
		}
		if err == nil && got != c.want {
			t.Errorf("%s: %x, want %x", name, got, c.want)
		}
	}
}
