package pod

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/sandbox/pod/inside"
)

// defaultCapabilities is containerd's default set (oci: defaultUnixCaps).
var defaultCapabilities = []string{
	"CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
	"NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
}

// capabilityNames is in the kernel's order (capability.h).
var capabilityNames = []string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
	"LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
	"SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
	"SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
	"MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
	"CHECKPOINT_RESTORE",
}

const allCapabilities = 1<<(unix.CAP_LAST_CAP+1) - 1

// identify fills in user, groups and capabilities from the security contexts of container and pod.
func (c *container) identify(spec *inside.Spec) error {
	own, pod := c.spec.SecurityContext, c.w.pod.Spec.SecurityContext
	if own == nil {
		own = &corev1.SecurityContext{}
	}
	if pod == nil {
		pod = &corev1.PodSecurityContext{}
	}
	uid, gid := prefer(own.RunAsUser, pod.RunAsUser), prefer(own.RunAsGroup, pod.RunAsGroup)
	if nonRoot := prefer(own.RunAsNonRoot, pod.RunAsNonRoot); isTrue(nonRoot) {
		if err := c.checkNonRoot(uid); err != nil {
			return &configError{"CreateContainerConfigError", err}
		}
	}
	if uid != nil {
		spec.UID = int(*uid)
	}
	if gid != nil {
		spec.GID = int(*gid)
	}
	// As in CRI: supplemental groups and fsGroup are added to the user's own group.
	groups := []int{spec.GID}
	for _, g := range pod.SupplementalGroups {
		groups = append(groups, int(g))
	}
	if pod.FSGroup != nil {
		groups = append(groups, int(*pod.FSGroup))
	}
	slices.Sort(groups)
	spec.Groups = slices.Compact(groups)

	spec.NoNewPrivs = own.AllowPrivilegeEscalation != nil && !*own.AllowPrivilegeEscalation
	if isTrue(own.Privileged) {
		spec.Capabilities = allCapabilities
		return nil
	}
	mask, err := capabilities(own.Capabilities)
	if err != nil {
		return &configError{"CreateContainerError", err}
	}
	spec.Capabilities = mask
	return nil
}

// checkNonRoot is kubelet's verifyRunAsNonRoot: the image's user is root here, as no image says otherwise.
func (c *container) checkNonRoot(uid *int64) error {
	pod := fmt.Sprintf("%s_%s(%s)", c.w.pod.Name, c.w.pod.Namespace, c.w.pod.UID)
	if uid == nil {
		return fmt.Errorf("container has runAsNonRoot and image will run as root (pod: %q, container: %s)", pod, c.spec.Name)
	}
	if *uid == 0 {
		return fmt.Errorf("container's runAsUser breaks non-root policy (pod: %q, container: %s)", pod, c.spec.Name)
	}
	return nil
}

func prefer[T any](a, b *T) *T {
	if a != nil {
		return a
	}
	return b
}

// capabilities returns the bounding set after drop and add, as a bit mask.
func capabilities(c *corev1.Capabilities) (uint64, error) {
	mask, err := capabilityMask(defaultCapabilities)
	if err != nil || c == nil {
		return mask, err
	}
	names := func(list []corev1.Capability) (all bool, out []string) {
		for _, n := range list {
			name := strings.TrimPrefix(strings.ToUpper(string(n)), "CAP_")
			if name == "ALL" {
				all = true
				continue
			}
			out = append(out, name)
		}
		return all, out
	}
	dropAll, drop := names(c.Drop)
	addAll, add := names(c.Add)
	if addAll {
		mask = allCapabilities
	}
	if dropAll {
		mask = 0
	}
	dropped, err := capabilityMask(drop)
	if err != nil {
		return 0, fmt.Errorf("securityContext.capabilities.drop: %w", err)
	}
	added, err := capabilityMask(add)
	if err != nil {
		return 0, fmt.Errorf("securityContext.capabilities.add: %w", err)
	}
	return mask&^dropped | added, nil
}

func capabilityMask(names []string) (uint64, error) {
	var mask uint64
	for _, n := range names {
		i := slices.Index(capabilityNames, n)
		if i < 0 {
			return 0, fmt.Errorf("unknown capability %q", n)
		}
		mask |= 1 << i
	}
	return mask, nil
}

// commonUser is the user all containers of a pod run as, if there is one: kubelet makes token files readable for it
// alone (util.FsUserFrom).
func commonUser(pod *corev1.Pod) *int64 {
	var base, common *int64
	if pod.Spec.SecurityContext != nil {
		base = pod.Spec.SecurityContext.RunAsUser
	}
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		uid := base
		if c.SecurityContext != nil {
			uid = prefer(c.SecurityContext.RunAsUser, base)
		}
		if uid == nil || common != nil && *common != *uid {
			return nil
		}
		common = uid
	}
	return common
}

// fsGroup is the group that volumes belong to; nil for none.
func fsGroup(pod *corev1.Pod) *int64 {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	return pod.Spec.SecurityContext.FSGroup
}

// memory is the machine's, in bytes.
func memory() int64 {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0
	}
	return int64(info.Totalram) * int64(info.Unit)
}

// isProgram says whether path is a regular file that somebody may execute.
func isProgram(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}
