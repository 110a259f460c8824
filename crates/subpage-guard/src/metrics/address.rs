//! Where metrics are served, as the command line says it.

use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};

use super::server::MetricsError;

/// Reads `[HOST:]PORT`. Without a host it is 127.0.0.1; port 0 is any free one. A host by name is
/// looked up.
pub fn parse_address(text: &str) -> Result<SocketAddr, MetricsError> {
    let wrong = |reason: &str| MetricsError::Address {
        address: text.to_owned(),
        reason: reason.to_owned(),
    };
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let port = |text: &str| {
        // `parse` would take a sign.
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let port: Option<u16> = if digits { text.parse().ok() } else { None };
        port.ok_or_else(|| wrong("the port is a number from 0 to 65535"))
    };
    match text.rsplit_once(':') {
        None => Ok((Ipv4Addr::LOCALHOST, port(text)?).into()),
        // Elsewhere this means every interface, so it must not mean something else here.
        Some(("", _)) => Err(wrong("before the colon is no host")),
        Some((host, digits)) => {
            let found = (host, port(digits)?).to_socket_addrs();
            let mut found = found.map_err(|cause| wrong(&cause.to_string()))?;
            found.next().ok_or_else(|| wrong("the host has no address"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::parse_address;

    #[test]
    fn a_port_alone_is_on_loopback() {
        for (text, address) in [
            ("9464", "127.0.0.1:9464"),
            ("0", "127.0.0.1:0"),
            ("127.0.0.2:80", "127.0.0.2:80"),
            ("0.0.0.0:1", "0.0.0.0:1"),
            ("[::1]:9464", "[::1]:9464"),
        ] {
            assert_eq!(parse_address(text).expect(text).to_string(), address);
        }
        assert!(parse_address("localhost:1").expect("every machine has it").ip().is_loopback());
    }

    #[test]
    fn what_is_no_address_says_so() {
        for text in
            ["", ":", ":80", "65536", "+80", "-1", "80x", "1.2.3.4", "1.2.3.4:", "a b:1x", "::1"]
        {
            let error = parse_address(text).expect_err(text).to_string();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }
}
