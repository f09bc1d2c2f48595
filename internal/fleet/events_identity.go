package fleet

// TokenCreated lets somebody call the API. The secret is not in it, and cannot be found out from its hash: it has more
// than 256 bits of chance.
type TokenCreated struct {
	Token string `json:"token"`
	Name  string `json:"name"`
	// Hash is the SHA-256 of the secret, in hexadecimal.
	Hash string `json:"hash"`
	Role Role   `json:"role"`
	// All is for a token that is not limited to Environments. One with neither is refused.
	All          bool     `json:"all,omitempty"`
	Environments []string `json:"environments,omitempty"`
	// ExpiresUnix is when it ends, in seconds; 0 for never.
	ExpiresUnix int64 `json:"expires_unix,omitempty"`
}

// TokenRevoked ends a token.
type TokenRevoked struct {
	Token string `json:"token"`
}

// JoinAllowed says that one host may join with the secret of the hash.
type JoinAllowed struct {
	Join string `json:"join"`
	// Hash is as in TokenCreated.
	Hash string `json:"hash"`
	// Host limits it to the host of that id, also when that is known already. Without, it is for any host that is not.
	Host        string `json:"host,omitempty"`
	ExpiresUnix int64  `json:"expires_unix"`
}

// HostAdmitted says that a host has joined with a secret, which is used up. Certificates of an earlier admission of the
// host are of no use from now on.
type HostAdmitted struct {
	Host string `json:"host"`
	Join string `json:"join"`
	// Key is the SHA-256 of the host's public key, in hexadecimal: who asks again with that key, because the answer was
	// lost, has joined.
	Key string `json:"key"`
	// Admission is in each certificate that follows from it.
	Admission string `json:"admission"`
}

// HostRevoked ends the admission of a host. The host stays known, with what is placed on it.
type HostRevoked struct {
	Host string `json:"host"`
}

func (*TokenCreated) EventType() string { return "token.created" }
func (*TokenRevoked) EventType() string { return "token.revoked" }
func (*JoinAllowed) EventType() string  { return "host.join-allowed" }
func (*HostAdmitted) EventType() string { return "host.admitted" }
func (*HostRevoked) EventType() string  { return "host.revoked" }

func (*TokenCreated) EventVersion() uint16 { return 1 }
func (*TokenRevoked) EventVersion() uint16 { return 1 }
func (*JoinAllowed) EventVersion() uint16  { return 1 }
func (*HostAdmitted) EventVersion() uint16 { return 1 }
func (*HostRevoked) EventVersion() uint16  { return 1 }
