package redirect

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Backend puts a Spec into the network namespace of the calling thread, which the caller must have locked (see InNetNS).
type Backend interface {
	// Name is "nftables" or "iptables", or "auto" when each call decides.
	Name() string
	// Apply makes the kernel do what the Spec says, whatever was applied before. With nftables all rules change in one transaction;
	// with iptables it is one per table and family.
	Apply(Spec) error
	// Verify reads the kernel's rules back and says how they differ from the Spec, one line a difference; none means that they agree.
	Verify(Spec) ([]string, error)
	// Remove takes away everything that Apply may have made; nothing there is no error.
	Remove() error
	// Text is what Apply does, in the syntax of the backend's own tools.
	Text(Spec) (string, error)
}

// Names of backends.
const (
	Auto     = "auto"
	NFTables = "nftables"
	IPTables = "iptables"
)

// Open gives the backend of that name; "" is Auto, which uses nftables where the kernel has all that the rules need and
// iptables elsewhere. There is no better probe for that than the rules themselves: the kernel refuses a transaction as a whole.
func Open(name string) (Backend, error) {
	switch name {
	case Auto, "":
		return auto{}, nil
	case NFTables:
		return nft{}, nil
	case IPTables:
		return newIPTables(), nil
	}
	return nil, fmt.Errorf("no redirect backend is called %q, want %s, %s or %s", name, Auto, NFTables, IPTables)
}

// InNetNS runs f on a thread of its own inside the network namespace at path (usually what CNI passes as CNI_NETNS).
func InNetNS(path string, f func() error) error {
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer ns.Close()
	return In(ns, f)
}

// In is InNetNS for a namespace that is open. It stays the same one whatever happens to its path.
func In(ns *os.File, f func() error) error {
	done := make(chan error, 1)
	go func() {
		// The thread is never unlocked, so no other goroutine ever runs on it and it ends with this one. The program's first
		// thread does not end, it is parked for good: going back keeps it from holding the pod's namespace for as long as the program runs.
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			done <- fmt.Errorf("open our own network namespace: %w", err)
			return
		}
		defer home.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace %s: %w", ns.Name(), err)
			return
		}
		err = f()
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
			err = errors.Join(err, fmt.Errorf("leave network namespace %s: %w", ns.Name(), back))
		}
		done <- err
	}()
	return <-done
}

// nft is the nftables backend: netlink only, no process.
type nft struct{}

func (nft) Name() string { return NFTables }

func (nft) Apply(s Spec) error {
	if err := s.Validate(); err != nil {
		return err
	}
	// The address and the routes first: once the rules are there, the proxy may already be using them.
	if err := addRoutes(routes(s)); err != nil {
		return err
	}
	replaced, err := nftWrite(nftCompile(compile(s)))
	if err != nil || !replaced {
		// In a new pod there is nothing to look for. Each attempt would wait for a lock that all network namespaces of the machine share.
		return err
	}
	return removeOtherRoutes(routes(s))
}

func (nft) Verify(s Spec) ([]string, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	drift, err := verifyRoutes(routes(s))
	if err != nil {
		return nil, err
	}
	want := nftCompile(compile(s))
	have, ok, err := nftRead()
	if err != nil {
		return nil, err
	}
	return append(drift, nftCompare(want, have, ok)...), nil
}

func (nft) Remove() error {
	_, err := nftWrite(nftTable{})
	return errors.Join(err, removeOtherRoutes(nil))
}

func (nft) Text(s Spec) (string, error) {
	if err := s.Validate(); err != nil {
		return "", err
	}
	t := nftCompile(compile(s))
	if len(t.chains) == 0 {
		return "", nil
	}
	return t.text() + routesText(s), nil
}

// routesText writes what Apply adds besides rules, as comments.
func routesText(s Spec) string {
	text := ""
	for _, r := range routes(s) {
		text += "# " + r.name + "\n"
	}
	return text
}

// auto is nftables, or iptables where the kernel lacks what the rules need.
type auto struct{}

func (auto) Name() string { return Auto }

func (auto) Apply(s Spec) error {
	err := nft{}.Apply(s)
	if err == nil || !lacksNFTables(err) {
		return err
	}
	if ipErr := newIPTables().Apply(s); ipErr != nil {
		return fmt.Errorf("this kernel lacks what the nftables rules need (%w), and iptables failed too: %w", err, ipErr)
	}
	return nil
}

// lacksNFTables recognises the kernel's answers to a transaction that uses something it was built without.
func lacksNFTables(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EAFNOSUPPORT)
}

func (auto) Verify(s Spec) ([]string, error) {
	drift, err := nft{}.Verify(s)
	if err == nil && len(drift) == 0 {
		return nil, nil
	}
	if _, ok, readErr := nftRead(); readErr == nil && ok {
		return drift, err
	}
	// No nftables rules at all: perhaps Apply had to use iptables.
	if ip := newIPTables(); ip.present() {
		return ip.Verify(s)
	}
	return drift, err
}

func (auto) Remove() error {
	err := nft{}.Remove()
	if err != nil && !lacksNFTables(err) {
		return err
	}
	if ip := newIPTables(); err != nil || ip.present() {
		return ip.Remove()
	}
	return nil
}

func (auto) Text(s Spec) (string, error) { return nft{}.Text(s) }
