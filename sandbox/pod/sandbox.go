package pod

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/sandbox/pod/inside"
)

// sandbox is what the containers of a pod share: namespaces held by bind mounts, the network in them, and, when the
// pod asks for it, a PID namespace held by a process.
type sandbox struct {
	id      string // CRI's sandbox ID, CNI's container ID
	host    bool   // on the host's network
	netns   string
	ipcns   string
	utsns   string
	ips     []netip.Addr
	pause   *process // shareProcessNamespace only
	network bool     // CNI ADD was tried, so DEL is due
}

// spaces returns the namespaces that every process of the pod enters.
func (s *sandbox) spaces() []inside.Namespace {
	spaces := []inside.Namespace{{Path: s.utsns, Flag: unix.CLONE_NEWUTS}, {Path: s.ipcns, Flag: unix.CLONE_NEWIPC}}
	if !s.host {
		spaces = append(spaces, inside.Namespace{Path: s.netns, Flag: unix.CLONE_NEWNET})
	}
	return spaces
}

// pidNS is the PID namespace that containers share; empty when each has its own.
func (s *sandbox) pidNS() string {
	if s.pause == nil {
		return ""
	}
	return fmt.Sprintf("/proc/%d/ns/pid", s.pause.pid)
}

// makeSpaces makes and mounts the namespaces of a pod. On error nothing stays.
func makeSpaces(s *sandbox, hostname string, sysctls []corev1.Sysctl) error {
	flags := unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	files := map[string]string{"ipc": s.ipcns, "uts": s.utsns}
	if !s.host {
		flags |= unix.CLONE_NEWNET
		files["net"] = s.netns
	}
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		back, err := comeBack(flags)
		if err != nil {
			result <- err
			return
		}
		err = unshareAndPin(s, flags, files, hostname, sysctls)
		// A thread that stays locked ends with its goroutine, but for the program's first: that one is put away with all
		// its namespaces, would keep the pod's alive, and /proc/PID/ns of the program would show them.
		if lost := back(); lost != nil {
			err = errors.Join(err, lost)
		} else {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	err := <-result
	if err != nil {
		err = errors.Join(err, dropSpaces(s))
	}
	return err
}

func unshareAndPin(s *sandbox, flags int, files map[string]string, hostname string, sysctls []corev1.Sysctl) error {
	if err := unix.Unshare(flags); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fmt.Errorf("sethostname %q: %w", hostname, err)
	}
	if !s.host {
		if err := prepareNetwork(sysctls); err != nil {
			return err
		}
	}
	for kind, path := range files {
		if err := pin("/proc/thread-self/ns/"+kind, path); err != nil {
			return err
		}
	}
	return nil
}

// comeBack returns a function that puts the calling thread back into its present namespaces.
func comeBack(flags int) (func() error, error) {
	own := map[int]int{}
	for kind, flag := range map[string]int{"net": unix.CLONE_NEWNET, "ipc": unix.CLONE_NEWIPC, "uts": unix.CLONE_NEWUTS} {
		if flags&flag == 0 {
			continue
		}
		fd, err := unix.Open("/proc/thread-self/ns/"+kind, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("own %s namespace: %w", kind, err)
		}
		own[flag] = fd
	}
	return func() error {
		var errs []error
		for flag, fd := range own {
			if err := unix.Setns(fd, flag); err != nil {
				errs = append(errs, fmt.Errorf("return to the own namespace: %w", err))
			}
			unix.Close(fd)
		}
		return errors.Join(errs...)
	}, nil
}

// prepareNetwork does what containerd does to a new network namespace.
func prepareNetwork(sysctls []corev1.Sysctl) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("loopback up: %w", err)
	}
	// containerd 2: enable_unprivileged_ports, enable_unprivileged_icmp. The user's own settings come after.
	for _, s := range [][2]string{{"net.ipv4.ip_unprivileged_port_start", "0"}, {"net.ipv4.ping_group_range", "0 2147483647"}} {
		if err := sysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	// The IPAM plugin is the one who says that an address is free. The kernel's own detection of duplicates keeps a new
	// IPv6 address unusable, and the plugin waiting, for up to two seconds.
	for _, scope := range []string{"all", "default"} {
		if err := sysctl("net.ipv6.conf."+scope+".accept_dad", "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	for _, s := range sysctls {
		if !strings.HasPrefix(s.Name, "net.") {
			return fmt.Errorf("securityContext.sysctls: %s: only net.* belongs to a pod here", s.Name)
		}
		if err := sysctl(s.Name, s.Value); err != nil {
			return fmt.Errorf("securityContext.sysctls: %w", err)
		}
	}
	return nil
}

// sysctl sets a kernel parameter of the calling thread's network namespace.
func sysctl(name, value string) error {
	path := filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		return fmt.Errorf("sysctl %s=%s: %w", name, value, err)
	}
	return nil
}

// pin keeps a namespace alive by mounting its file.
func pin(ns, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(ns, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s on %s: %w", ns, path, err)
	}
	return nil
}

// dropSpaces releases the namespaces; those that do not exist are no error.
func dropSpaces(s *sandbox) error {
	var errs []error
	for _, path := range []string{s.netns, s.ipcns, s.utsns} {
		if path != "" {
			errs = append(errs, unpin(path))
		}
	}
	return errors.Join(errs...)
}

func unpin(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// makeSandbox makes namespaces and network of a pod. On error nothing stays but what later CNI DEL calls find.
func (w *worker) makeSandbox() (*sandbox, error) {
	uid := string(w.pod.UID)
	s := &sandbox{
		id:    randomID(),
		host:  w.pod.Spec.HostNetwork,
		netns: w.r.path("netns", uid),
		ipcns: w.r.path("ipcns", uid),
		utsns: w.r.path("utsns", uid),
	}
	if s.host {
		s.netns = ""
	}
	var sysctls []corev1.Sysctl
	if sc := w.pod.Spec.SecurityContext; sc != nil {
		sysctls = sc.Sysctls
	}
	if err := makeSpaces(s, w.hostname(), sysctls); err != nil {
		return nil, fmt.Errorf("make namespaces: %w", err)
	}
	if err := w.connect(s); err != nil {
		w.unmake(s)
		return nil, err
	}
	if share := w.pod.Spec.ShareProcessNamespace; share != nil && *share {
		pause, err := launch(inside.Spec{Mode: inside.Pause, Namespaces: s.spaces()}, "", nil, nil, nil)
		if err != nil {
			w.unmake(s)
			return nil, fmt.Errorf("shared PID namespace: %w", err)
		}
		s.pause = pause
		w.remember("pause", pause)
	}
	return s, nil
}

func (w *worker) connect(s *sandbox) error {
	if s.host {
		s.ips = w.r.cfg.Node.addresses()
		return nil
	}
	s.network = true
	ips, err := w.r.net.add(w.ctx, w.pod, s)
	s.ips = ips
	return err
}

// unmake undoes makeSandbox. What fails is logged: there is nobody left who could act on it, and Clean comes again.
func (w *worker) unmake(s *sandbox) {
	if s.pause != nil {
		s.pause.signal(unix.SIGKILL)
		<-s.pause.done
	}
	if s.network {
		if err := w.r.net.del(w.pod, s); err != nil {
			w.r.log.Warn("network of a pod is not fully removed", slog.String("pod", w.name()), slog.Any("error", err))
		}
	}
	if err := dropSpaces(s); err != nil {
		w.r.log.Warn("namespaces of a pod are not fully removed", slog.String("pod", w.name()), slog.Any("error", err))
	}
}

func (n Node) addresses() []netip.Addr {
	if len(n.IPs) > 0 {
		return n.IPs
	}
	if n.IP.IsValid() {
		return []netip.Addr{n.IP}
	}
	return nil
}
