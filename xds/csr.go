package xds

import (
	"bytes"
	"context"
	"encoding/pem"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	signing "istio.io/api/security/v1alpha1"
)

// signer is Istio's certificate service, for clients that make their own key
// (istio.v1.auth.IstioCertificateService). The identity comes from the caller's token;
// what the request asks to be called is ignored.
type signer struct {
	signing.UnimplementedIstioCertificateServiceServer
	server *Server
}

func registerSigner(g grpc.ServiceRegistrar, s *Server) {
	signing.RegisterIstioCertificateServiceServer(g, &signer{server: s})
}

// CreateCertificate signs the request's public key. The answer is the leaf,
// what stands between it and the root, and last the roots, as Istio's clients expect.
func (c *signer) CreateCertificate(ctx context.Context, r *signing.IstioCertificateRequest) (*signing.IstioCertificateResponse, error) {
	s := c.server
	l, err := s.authenticate(ctx)
	if err != nil {
		return nil, err
	}
	if !l.secrets {
		return nil, status.Error(codes.PermissionDenied, "certificates are signed over TLS, for callers with a token")
	}
	ttl := s.config.TTL
	if asked := time.Duration(r.GetValidityDuration()) * time.Second; asked > 0 && asked < ttl {
		ttl = asked
	}
	chain, err := s.config.Authority.SignRequest([]byte(r.GetCsr()), l.id, ttl)
	if err != nil {
		s.metrics.signingFailed()
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	s.metrics.signed()
	var out []string
	for rest := chain; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		out = append(out, string(pem.EncodeToMemory(block)))
	}
	return &signing.IstioCertificateResponse{CertChain: append(out, string(bytes.TrimSpace(s.config.Authority.Roots()))+"\n")}, nil
}
