package main

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// message is as much of a response as a lean proxy needs.
type message struct {
	size           int
	typeURL        string
	nonce, version string
	resources      []entry // when they are wanted
	removed        []string
}

// entry is a resource's name and version. Aliases are other names that it was asked by.
type entry struct {
	name, version string
	aliases       []string
}

// A parser takes a gRPC stream apart, in whatever pieces it comes, and copies nothing that is not wanted: resources are most of
// it.
type parser struct {
	wanted bool // resources too
	done   func(*message) error

	head []byte // of a gRPC message, or of a field, until it is complete
	left int    // bytes of the gRPC message that are still to come
	skip int    // bytes of the field
	keep []byte // the field, when it is wanted
	field
	now      message
	messages int // so far
}

type field struct {
	number protowire.Number
	size   int
}

var errWire = errors.New("malformed response")

const grpcHead = 5

func (p *parser) write(b []byte) error {
	for len(b) > 0 {
		if p.left == 0 {
			n := min(grpcHead-len(p.head), len(b))
			p.head = append(p.head, b[:n]...)
			b = b[n:]
			if len(p.head) < grpcHead {
				return nil
			}
			if p.head[0] != 0 {
				return errors.New("the response is compressed, which nobody asked for")
			}
			p.left = int(p.head[1])<<24 | int(p.head[2])<<16 | int(p.head[3])<<8 | int(p.head[4])
			p.now = message{size: p.left}
			p.head = p.head[:0]
		}
		n := min(p.left, len(b))
		if err := p.fields(b[:n]); err != nil {
			return err
		}
		p.left -= n
		b = b[n:]
		if p.left == 0 {
			p.messages++
			if err := p.done(&p.now); err != nil {
				return err
			}
		}
	}
	return nil
}

// fields takes a part of a message.
func (p *parser) fields(b []byte) error {
	for len(b) > 0 {
		if p.skip > 0 {
			n := min(p.skip, len(b))
			if p.keep != nil {
				p.keep = append(p.keep, b[:n]...)
			}
			p.skip -= n
			b = b[n:]
			if p.skip == 0 && p.keep != nil {
				if err := p.known(p.number, p.keep); err != nil {
					return err
				}
				p.keep = nil
			}
			continue
		}
		p.head = append(p.head, b[0])
		b = b[1:]
		number, kind, n := protowire.ConsumeTag(p.head)
		if n < 0 {
			if len(p.head) > 10 {
				return errWire
			}
			continue
		}
		size, m := protowire.ConsumeVarint(p.head[n:])
		if m < 0 {
			if len(p.head) > 20 {
				return errWire
			}
			continue
		}
		p.head = p.head[:0]
		switch kind {
		case protowire.VarintType:
		case protowire.BytesType:
			p.field = field{number, int(size)}
			p.skip = p.size
			if number != 2 && number <= 6 || p.wanted && number == 2 {
				p.keep = make([]byte, 0, p.size)
				if p.size == 0 {
					p.keep = nil
				}
			}
		default:
			return errWire
		}
	}
	return nil
}

// known takes one complete field that is wanted.
func (p *parser) known(number protowire.Number, v []byte) error {
	switch number {
	case 1:
		p.now.version = string(v) // state of the world
	case 2:
		e, err := parseEntry(v)
		if err != nil {
			return err
		}
		p.now.resources = append(p.now.resources, e)
	case 4:
		p.now.typeURL = string(v)
	case 5:
		p.now.nonce = string(v)
	case 6:
		p.now.removed = append(p.now.removed, string(v))
	}
	return nil
}

// parseEntry reads a Resource of a delta response.
func parseEntry(b []byte) (e entry, err error) {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return e, fmt.Errorf("resource: %w", protowire.ParseError(n))
		}
		if kind == protowire.BytesType {
			v, m := protowire.ConsumeBytes(b[n:])
			if m < 0 {
				return e, fmt.Errorf("resource: %w", protowire.ParseError(m))
			}
			switch number {
			case 1:
				e.version = string(v)
			case 3:
				e.name = string(v)
			case 4:
				e.aliases = append(e.aliases, string(v))
			}
		}
		m := protowire.ConsumeFieldValue(number, kind, b[n:])
		if m < 0 {
			return e, fmt.Errorf("resource: %w", protowire.ParseError(m))
		}
		b = b[n+m:]
	}
	return e, nil
}
