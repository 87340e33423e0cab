package cni

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/redirect"
)

// Status says whether an ADD would work now (CNI spec 1.1 section 4, STATUS): it redirects a network namespace that exists only for this
// call, reads the rules back, and looks whether it would learn about a pod at all.
func Status(args *skel.CmdArgs) error {
	conf, err := ParseConf(args.StdinData)
	if err != nil {
		return err
	}
	if err := errors.Join(tryRules(conf), tryState(conf), trySource(conf)); err != nil {
		return fail(types.ErrPluginNotAvailable, pod{}, err)
	}
	return nil
}

func tryRules(conf Conf) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the namespace goes with the thread
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("make a network namespace to try the rules in: %w", err)
			}
			if err := conf.backend().Apply(redirect.Default()); err != nil {
				return fmt.Errorf("redirection does not work on this node: %w", err)
			}
			drift, err := conf.backend().Verify(redirect.Default())
			if err == nil && len(drift) > 0 {
				err = errors.New(shortened(drift))
			}
			if err != nil {
				return fmt.Errorf("redirection does not work on this node: rules read back: %w", err)
			}
			return nil
		}()
	}()
	return <-done
}

func tryState(conf Conf) error {
	if err := os.MkdirAll(conf.StateDir, 0o700); err != nil {
		return fmt.Errorf("stateDir: %w", err)
	}
	if err := unix.Access(conf.StateDir, unix.W_OK); err != nil {
		return fmt.Errorf("stateDir %s: %w", conf.StateDir, err)
	}
	return nil
}

// trySource: without annotations and without an agent, each ADD of a Kubernetes pod would fail.
func trySource(conf Conf) error {
	if conf.Capabilities[CapabilityAnnotations] {
		return nil
	}
	if conf.AgentSocket == "" {
		return fmt.Errorf("no way to learn whether a pod is injected: conflist %q asks for no capability %q and names no agentSocket", conf.Name, CapabilityAnnotations)
	}
	c, err := net.DialTimeout("unix", conf.AgentSocket, time.Second)
	if err != nil {
		return fmt.Errorf("the node agent does not answer: %w", err)
	}
	return c.Close()
}
