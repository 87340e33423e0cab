package redirect

import (
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// nlSocket is a blocking netlink socket for one thread. The libraries' sockets serve many goroutines through the runtime's poller and
// acknowledge each message; on a locked thread this costs two context switches a message, several times what the kernel
// needs for the work itself.
type nlSocket struct {
	fd  int
	seq uint32
	buf []byte
}

// dialNetlink opens a socket in the network namespace of the calling thread.
func dialNetlink(protocol int) (*nlSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	// A transaction is one message to send, and its default limit is too small for thousands of ranges. FORCE lifts the
	// administrator's limit and needs NET_ADMIN, which the rules need too. An answer is never waited for longer than the kernel could take.
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 16<<20)
	if err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10})
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	return &nlSocket{fd: fd, buf: make([]byte, 64<<10)}, nil
}

func (s *nlSocket) Close() error { return unix.Close(s.fd) }

// message puts a header before the data. Netlink aligns messages to 4 bytes.
func (s *nlSocket) message(b []byte, m netlink.Message) []byte {
	s.seq++
	b = binary.NativeEndian.AppendUint32(b, uint32(unix.NLMSG_HDRLEN+len(m.Data)))
	b = binary.NativeEndian.AppendUint16(b, uint16(m.Header.Type))
	b = binary.NativeEndian.AppendUint16(b, uint16(m.Header.Flags))
	b = binary.NativeEndian.AppendUint32(b, s.seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, m.Data...)
	return append(b, make([]byte, (4-len(m.Data)%4)%4)...)
}

func (s *nlSocket) send(b []byte) error {
	if err := unix.Sendto(s.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("send to netlink", err)
	}
	return nil
}

// receive gives the messages of one datagram, each with its header.
func (s *nlSocket) receive() ([]syscall.NetlinkMessage, error) {
	for {
		n, _, err := unix.Recvfrom(s.fd, s.buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("receive from netlink", err)
		}
		return syscall.ParseNetlinkMessage(s.buf[:n])
	}
}

// failure is the error that an acknowledgement carries, or nil.
func failure(m syscall.NetlinkMessage) error {
	if len(m.Data) < 4 {
		return unix.EBADMSG
	}
	if code := int32(binary.NativeEndian.Uint32(m.Data)); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}

// Execute sends one message that asks for an acknowledgement or a dump, and gives what the kernel answers.
func (s *nlSocket) Execute(m netlink.Message) ([]netlink.Message, error) {
	if err := s.send(s.message(nil, m)); err != nil {
		return nil, err
	}
	var out []netlink.Message
	for {
		answers, err := s.receive()
		if err != nil {
			return nil, err
		}
		for _, a := range answers {
			if a.Header.Seq != s.seq {
				continue // left over from an exchange that failed half-way
			}
			switch a.Header.Type {
			case unix.NLMSG_ERROR:
				return out, failure(a)
			case unix.NLMSG_DONE:
				return out, nil
			}
			out = append(out, netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(a.Header.Type)}, Data: slices.Clone(a.Data)})
		}
	}
}

// step is one message of a transaction, with words for what it does.
type step struct {
	what string
	netlink.Message
}

// transact sends all steps as one netfilter transaction: either all of them happen or none. Only the last step asks for an acknowledgement,
// because the kernel reports failures unasked.
func (s *nlSocket) transact(steps []step) error {
	if len(steps) == 0 {
		return nil
	}
	mark := func(kind uint16) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request}, Data: []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES}}
	}
	b := s.message(nil, mark(unix.NFNL_MSG_BATCH_BEGIN))
	begin := s.seq
	for i, m := range steps {
		if i == len(steps)-1 {
			m.Header.Flags |= netlink.Acknowledge
		}
		b = s.message(b, m.Message)
	}
	last := s.seq
	if err := s.send(s.message(b, mark(unix.NFNL_MSG_BATCH_END))); err != nil {
		return err
	}
	for {
		answers, err := s.receive()
		if err != nil {
			return err
		}
		for _, a := range answers {
			at := a.Header.Seq
			if a.Header.Type != unix.NLMSG_ERROR || at < begin || at > last {
				continue // a transaction that failed before this one may have more to complain about than was read
			}
			err := failure(a)
			switch {
			case err != nil && at == begin:
				return fmt.Errorf("commit: %w", err)
			case err != nil:
				return fmt.Errorf("%s: %w", steps[at-begin-1].what, err)
			case at == last:
				return nil
			}
		}
	}
}
