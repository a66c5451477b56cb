//! The header of the PROXY protocol, version 2: whose connection a load balancer hands on.
//!
//! Read only from listed peers, who must send it; from everybody else it is no HTTP and refused as that. INVARIANT: an
//! address is taken only from a whole, well-formed header of bounded size; nothing behind it is read. `LOCAL` is the load
//! balancer's own connection. What it says of TLS is not used: nobody has verified it here.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tokio::io::{AsyncRead, AsyncReadExt};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Addresses and extensions; more than any load balancer sends.
const MAX_LENGTH: usize = 4096;

/// Reads the header. The client's address, or none when it is the peer itself that speaks.
pub(super) async fn read<S: AsyncRead + Unpin>(io: &mut S) -> io::Result<Option<IpAddr>> {
    let mut fixed = [0; 16];
    io.read_exact(&mut fixed).await?;
    let [signature @ .., version, family, high, low] = fixed;
    if signature != SIGNATURE || version >> 4 != 2 {
        return Err(bad("a listed peer does not begin with the header of the PROXY protocol, version 2"));
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_LENGTH {
        return Err(bad("the header of the PROXY protocol is too long"));
    }
    let mut rest = vec![0; length];
    io.read_exact(&mut rest).await?;
    match (version & 0xf, family) {
        (0, _) => Ok(None),
        (1, 0x11) => match rest.first_chunk::<12>() {
            Some([a, b, c, d, ..]) => Ok(Some(Ipv4Addr::new(*a, *b, *c, *d).into())),
            None => Err(bad("the header of the PROXY protocol holds no whole address")),
        },
        (1, 0x21) => match (rest.first_chunk::<16>(), rest.len() >= 36) {
            (Some(source), true) => Ok(Some(Ipv6Addr::from(*source).to_canonical())),
            _ => Err(bad("the header of the PROXY protocol holds no whole address")),
        },
        (1, _) => Err(bad("the header of the PROXY protocol is of another kind of connection than TCP")),
        _ => Err(bad("the header of the PROXY protocol has an unknown command")),
    }
}

fn bad(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut out = SIGNATURE.to_vec();
        out.extend([0x20 | command, family]);
        out.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        out.extend(body);
        out
    }

    async fn parse(bytes: &[u8]) -> io::Result<(Option<IpAddr>, Vec<u8>)> {
        let mut rest = bytes;
        let address = read(&mut rest).await?;
        Ok((address, rest.to_vec()))
    }

    #[tokio::test]
    async fn the_address_is_read_and_nothing_behind_it() {
        let v4 = [192, 0, 2, 7, 10, 0, 0, 1, 0x30, 0x39, 0, 80, 4, 0, 1, 9];
        let mut bytes = header(1, 0x11, &v4);
        bytes.extend(b"GET");
        assert_eq!(parse(&bytes).await.unwrap(), (Some("192.0.2.7".parse().unwrap()), b"GET".to_vec()));
        let mut v6 = [0; 36];
        v6[..2].copy_from_slice(&[0x20, 1]);
        v6[15] = 5;
        assert_eq!(parse(&header(1, 0x21, &v6)).await.unwrap().0, Some("2001::5".parse().unwrap()));
        assert_eq!(parse(&header(0, 0, &[])).await.unwrap().0, None);
    }

    #[tokio::test]
    async fn what_is_not_whole_is_refused() {
        for bytes in [
            b"PROXY TCP4 192.0.2.7 10.0.0.1 1 80\r\n".to_vec(),
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
            header(1, 0x11, &[192, 0, 2, 7]),
            header(1, 0x21, &[0; 20]),
            header(1, 0x31, &[0; 216]),
            header(1, 0x12, &[0; 12]),
            header(7, 0x11, &[0; 12]),
            header(1, 0x11, &vec![0; MAX_LENGTH + 1]),
            header(1, 0x11, &[0; 12])[..20].to_vec(),
        ] {
            assert!(parse(&bytes).await.is_err(), "{bytes:?}");
        }
    }
}
